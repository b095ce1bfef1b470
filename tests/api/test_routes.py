"""Tests the routes other than chat: completions, models, tokens, health, metrics, the description; and CORS headers."""

import math

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from ..support.tiny_pair import VICUNA, Tiny, write_text
from .running import data_uri, events, picture, serving

PROMPT = "USER: Hello ASSISTANT:"
GO_ON = {"logit_bias": {"2": -100}}


def complete(server, **body):
    return server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 3} | GO_ON | body)


def test_a_completion(server):
    body = complete(server).json()
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
    (choice,) = body["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"} and choice["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 3


def test_a_streamed_completion(server):
    whole = complete(server, n=2, temperature=2.0, seed=1).json()["choices"]
    asked = {"prompt": PROMPT, "max_tokens": 3, "stream": True, "n": 2, "temperature": 2.0, "seed": 1} | GO_ON
    with server.client.stream("POST", "/v1/completions", json=asked) as answer:
        *chunks, done = events(answer)
    assert done == "[DONE]"
    for index in (0, 1):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(c["text"] for c in mine) == whole[index]["text"]
        assert mine[-1]["finish_reason"] == "length"


def test_echo_scores_a_prompt(server):
    """Evaluation harnesses request the log-probabilities of a prompt of token ids like this."""
    ids = server.post("/tokenize", {"content": PROMPT, "add_special": True}).json()["tokens"]
    scored = complete(server, prompt=ids, echo=True, logprobs=1, max_tokens=1).json()["choices"][0]["logprobs"]
    assert len(scored["tokens"]) == len(ids) + 1 and scored["token_logprobs"][0] is None
    assert all(len(table) == len(ids) + 1 for table in scored.values())
    alone = complete(server, prompt=ids, echo=True, logprobs=1, max_tokens=0).json()["choices"][0]
    assert alone["logprobs"]["token_logprobs"] == scored["token_logprobs"][:-1] and alone["finish_reason"] == "length"
    total = sum(lp for lp in scored["token_logprobs"] if lp is not None)
    assert -math.inf < total < 0


def test_prompt_tokens_score_like_generated_ones(server):
    """Generated tokens and the same tokens given in a prompt have the same log-probabilities."""
    made = complete(server, logprobs=0).json()["choices"][0]["logprobs"]["token_logprobs"]
    ids = server.post("/tokenize", {"content": PROMPT, "add_special": True}).json()["tokens"]
    text = complete(server).json()["choices"][0]["text"]
    given = server.post("/tokenize", {"content": PROMPT + text, "add_special": True}).json()["tokens"]
    assert given[: len(ids)] == ids and len(given) == len(ids) + 3
    scored = complete(server, prompt=given, echo=True, logprobs=0, max_tokens=0).json()["choices"][0]["logprobs"]
    assert scored["token_logprobs"][len(ids) :] == pytest.approx(made, abs=1e-4)


def test_several_prompts(server):
    body = complete(server, prompt=["a", "b"], n=2).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    alone = complete(server, prompt="b").json()
    assert body["choices"][2]["text"] == alone["choices"][0]["text"]
    twice = complete(server, prompt=["b", "b"]).json()["usage"]
    assert twice["prompt_tokens"] == 2 * alone["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    "body, param",
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": "see <image>"}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"messages": []}, "messages"),
    ],
)
def test_invalid_completions(server, body, param):
    status, where, _ = server.error(complete(server, **body))
    assert (status, where) == (400, param)


def test_models(server):
    listed = server.client.get("/v1/models").json()
    (model,) = listed["data"]
    assert listed["object"] == "list" and model["object"] == "model" and model["meta"]["tokens_per_image"] == 64
    assert server.client.get(f"/v1/models/{model['id']}").json() == model
    (abilities,) = listed["models"]
    assert abilities["model"] == model["id"] and abilities["capabilities"] == ["completion", "multimodal"]


def test_a_model_without_a_tower_takes_no_pictures(tmp_path):
    with serving(pair=(write_text(tmp_path / "text.gguf", Tiny(template=VICUNA)), None)) as blind:
        assert blind.client.get("/v1/models").json()["models"][0]["capabilities"] == ["completion"]


def test_apply_template(server):
    """The prompt's tokens are those that the chat counts, and a picture is one mark."""
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi </s>"}]
    prompt = server.post("/apply-template", {"messages": talk}).json()["prompt"]
    assert prompt == "Be brief. USER: Hi </s> ASSISTANT:"
    seen = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_uri(picture("count.png"))}},
                                         {"type": "text", "text": "Count."}]}]  # fmt: skip
    assert server.post("/apply-template", {"messages": seen}).json() == {"prompt": "USER: <image>\nCount. ASSISTANT:"}
    looks = {"type": "function", "function": {"name": "look"}}
    told = server.post("/apply-template", {"messages": seen, "tools": [looks], "temperature": 1}).json()
    assert '{"name": "look"' in told["prompt"] and told["warnings"][0].startswith("temperature")
    begun = server.post("/apply-template", {"messages": [*talk, {"role": "assistant", "content": "We"}]}).json()
    assert begun["prompt"].endswith("ASSISTANT: We") and "warnings" in begun
    assert server.error(server.post("/apply-template", {"messages": []}))[:2] == (400, "messages")


def test_tokenize_and_detokenize(server):
    text = "a red circle </s>, Grüße \u4f60"
    ids = server.post("/tokenize", {"content": text}).json()["tokens"]
    assert 2 in ids and server.post("/detokenize", {"tokens": ids}).json()["content"] == text
    plain = server.post("/tokenize", {"content": text, "parse_special": False}).json()["tokens"]
    assert 2 not in plain and server.post("/detokenize", {"tokens": plain}).json()["content"] == text
    with_bos = server.post("/tokenize", {"content": text, "add_special": True, "with_pieces": True}).json()["tokens"]
    assert [token["id"] for token in with_bos] == [1, *ids] and with_bos[0]["piece"] == "<s>"
    assert server.error(server.post("/detokenize", {"tokens": [1, 10**6]}))[:2] == (400, "tokens")
    assert server.error(server.post("/tokenize", {"content": "x" * 2_000_001}))[:2] == (400, "content")


def test_health(server):
    for path in ("/health", "/healthz"):
        assert server.client.get(path).json() == {"status": "ok", "model_loaded": True}
    assert server.client.head("/health").status_code == 200


def test_metrics(server):
    def value(name):
        page = server.client.get("/metrics")
        assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
        return next(float(line.split()[-1]) for line in page.text.splitlines() if line.startswith(name))

    before = value("llava_ref_completion_tokens_total")
    complete(server)
    server.until(lambda: value("llava_ref_completion_tokens_total") == before + 3)  # counted after the answer
    server.until(lambda: value('llava_ref_requests_total{route="/v1/completions",status="200"}') >= 1)
    server.until(lambda: value("llava_ref_busy ") == 0)


def test_request_ids_differ(server):
    ids = {server.client.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_the_description_names_every_route(server):
    page = server.client.get("/openapi.json").json()
    routes = {(route.path, method.lower()) for route in server.api.routes() for method in route.methods - {"HEAD"}}
    assert routes == {(path, method) for path, item in page["paths"].items() for method in item}
    fields = page["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "prompt_logprobs", "response_format"} <= set(fields)


def test_an_allowed_origin_may_read_answers():
    with serving(origins=["https://good.example"], api_key="k") as server:
        asks = {"origin": "https://good.example", "access-control-request-method": "POST"}
        allowed = server.client.options("/v1/chat/completions", headers=asks)
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://good.example"
        other = server.client.options("/v1/chat/completions", headers=asks | {"origin": "https://bad.example"})
        assert "access-control-allow-origin" not in other.headers
        refused = server.client.get("/v1/models", headers={"origin": "https://good.example"})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://good.example"


def test_no_origin_is_allowed_by_default(server):
    answer = server.client.get("/health", headers={"origin": "https://good.example"})
    assert "access-control-allow-origin" not in answer.headers
