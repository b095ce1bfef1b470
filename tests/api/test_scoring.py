"""Tests that given texts are scored by the model's own logits, and what clients ask to find their place in them."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from llava_ref.tracing.distance import log_softmax

from .running import PICTURES, data_uri, picture

BOUND = 2e-5  # measured 4e-6: products with the output matrix run over 64 positions here, over the whole prompt there
TEXT = "USER: What colour is the circle? ASSISTANT: The circle is red, é 中. " * 12
PAGE = Path(__file__).parents[2] / "docs" / "scoring.md"


def own(model, ids, *pictures):
    """Return the log-probability of each id after the first, from the model's logits in float64; NaN at pictures."""
    rows = log_softmax(model.logits(ids, pictures))
    assert rows.dtype == np.float64
    return np.array([np.nan if token < 0 else row[token] for row, token in zip(rows, ids[1:], strict=False)])


@pytest.mark.parametrize(
    "lengths",
    [[1], [131], [1, 2, 3, 63, 64, 65, 67, 129, 131], [131, 131, 65], [200, 199, 3]],
    ids=lambda lengths: "-".join(map(str, lengths)),
)
def test_prompts_in_one_request_are_scored_by_the_models_logits(server, model, lengths):
    """The lengths lie around the 64 positions that are scored at once; the prompts begin alike, and what an earlier one
    has left is used for the token that is generated."""
    ids = model.tokenizer.encode(TEXT, bos=True)
    body = {"prompt": [ids[:n] for n in lengths], "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234}
    choices = server.post("/v1/completions", body).json()["choices"]
    for n, choice in zip(lengths, choices, strict=True):
        scores = choice["logprobs"]["token_logprobs"]
        assert len(scores) == n + 1 and scores[0] is None, "one more, which was generated"
        given = np.array(scores[1:n], float)
        assert np.abs(given - own(model, ids[:n])).max(initial=0) < BOUND
        if n > 3:
            assert np.abs(given[1:] - own(model, ids[:n])[:-1]).max() > 1, "a shift by one position shows"


def score(server, *messages, **settings):
    body = {"messages": messages, "prompt_logprobs": 0, "max_tokens": 1} | settings
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("answer", ["3", "a red star", TEXT.strip()], ids=["one token", "several", "long"])
def test_an_answer_about_pictures_is_scored_by_the_models_logits(server, model, answer):
    shown = [picture("count.png"), picture("colour.png")]
    parts = [{"type": "image_url", "image_url": {"url": data_uri(data)}} for data in shown]
    question = {"role": "user", "content": [parts[0], {"type": "text", "text": "Count the stars."}, parts[1]]}
    whole = score(server, question, {"role": "assistant", "content": answer})
    raw = f"USER: <image>\n<image>\nCount the stars. ASSISTANT: {answer}"
    ids = model.raw_request(raw, shown).token_ids
    entries = whole["prompt_logprobs"]
    assert len(entries) == len(ids) == whole["usage"]["prompt_tokens"]
    assert [entry is None for entry in entries] == [True] + [token < 0 for token in ids[1:]]
    given = [entry and entry[str(token)]["logprob"] for entry, token in zip(entries, ids, strict=True)]
    expected = own(model, ids, *shown)
    assert np.nanmax(np.abs(np.array(given[1:], float) - expected)) < BOUND
    others = own(model, ids, *reversed(shown))
    assert np.nanmax(np.abs(others - expected)) > 0.1, "the pictures matter"
    before = score(server, question)["usage"]["prompt_tokens"]
    assert model.tokenizer.decode(ids[before:]).strip() == answer, "where the answer begins"


def test_clients_of_vllm_find_the_tokenizer(server, model):
    """lm-evaluation-harness 0.4.13 asks so, with tokenizer_backend=remote."""
    info = server.client.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["add_bos_token"]) == ("<s>", "</s>", True)
    assert info["tokenizer_class"] == "llama" and info["chat_template"] == model.template.source
    for text in ("<s>", "</s>", "a red star", "<s>USER: é 中"):
        ids = server.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json()
        assert ids == {"tokens": model.tokenizer.encode(text), "count": len(ids["tokens"]), "max_model_len": 2048}
        begun = server.post("/tokenize", {"prompt": text}).json()["tokens"]
        assert begun == [1, *ids["tokens"]], "vLLM's default is true, llama-server's is not"
        assert server.post("/detokenize", {"tokens": ids["tokens"]}).json() == {"prompt": text, "content": text}
    refused = server.post("/tokenize", {"prompt": 3})
    assert server.error(refused) == (400, "prompt", "invalid_value")
    assert server.error(server.post("/tokenize", {"prompt": "x" * 2_000_001}))[:2] == (400, "prompt")
    both = server.post("/tokenize", {"content": "a", "prompt": "b"}).json()
    assert both["tokens"] == model.tokenizer.encode("a") and "prompt" in both["warnings"][0]


def shown(language):
    """Return the page's example in a language, with what it prints."""
    return re.search(rf"^```{language}\n(.*?)^```\n+```text\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def alike(printed, written):
    """Compare texts whose numbers may differ in the last digit."""
    number = r"-?\d+\.\d+"
    assert re.sub(number, "#", printed) == re.sub(number, "#", written), printed
    numbers = [[float(found) for found in re.findall(number, text)] for text in (printed, written)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.002)


def test_the_example_in_python(server, capsys, monkeypatch):
    pytest.importorskip("openai", reason="OpenAI's package is not installed")
    monkeypatch.chdir(PICTURES)
    code, printed = shown("python").groups()
    exec(compile(code.replace("http://127.0.0.1:3928", server.url), str(PAGE), "exec"), {})
    alike(capsys.readouterr().out, printed)


def test_the_example_with_curl(server):
    command, printed = shown("sh").groups()
    done = subprocess.run(
        ["bash", "-c", command.replace("http://127.0.0.1:3928", server.url)],
        capture_output=True, text=True, timeout=60, cwd=PICTURES,
    )  # fmt: skip
    alike(done.stdout, printed)
