"""Tests undeclared parameters: accepted silently, with a warning, or refused, the same on every route."""

import re
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

import llava_ref
from llava_ref.api.openapi import description
from llava_ref.api.parameters import INSTEAD, LOADS, REFUSED, REQUESTS, SILENT, WARNED
from llava_ref.api.schema import ChatRequest, CompletionRequest
from llava_ref.api.undeclared import MAX_WARNINGS

from .running import Process, data_uri, events, picture, serving

HI = [{"role": "user", "content": "Hi"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
OWN = {CHAT: set(ChatRequest.model_fields), TEXT: set(CompletionRequest.model_fields)}


def body(path, asked):
    given = {"messages": HI} if path == CHAT else {"prompt": "Hi"}
    return given | {"max_tokens": 1} | asked


def ask(server, path, **asked):
    return server.post(path, body(path, asked))


def warnings(answer):
    assert answer.status_code == 200, answer.text
    return answer.json().get("warnings", [])


def test_each_name_is_in_one_table_and_undeclared():
    names = [*SILENT, *WARNED, *REFUSED]
    assert len(names) == len(set(names)) > 150
    assert not set(names) & OWN[CHAT] & OWN[TEXT]
    assert set(INSTEAD) <= set(WARNED) | set(REFUSED)


PLAIN = {path: [n for n in REQUESTS.silent if "." not in n and n not in OWN[path]] for path in OWN}


@pytest.mark.parametrize("path", OWN)
def test_silent_parameters_give_no_warning(server, strict, path):
    for value in ("x", True, {"a": [1]}):
        asked = dict.fromkeys(PLAIN[path], value)
        assert warnings(ask(server, path, **asked)) == warnings(ask(strict, path, **asked)) == []


@pytest.mark.parametrize("path", OWN)
def test_default_values_give_no_warning(server, strict, path):
    defaults = [(name, value) for table in (WARNED, REFUSED) for name, values in table.items() for value in values]
    defaults = [(name, value) for name, value in defaults if "." not in name and name not in OWN[path]]
    for batch in range(3):
        asked = {name: value for i, (name, value) in enumerate(defaults) if i % 3 == batch}
        assert warnings(ask(server, path, **asked)) == warnings(ask(strict, path, **asked)) == []


def some(path):
    """Return the names that this route warns of, in groups of MAX_WARNINGS, the most that one answer reports."""
    names = [n for n in [*WARNED, "frobnicate"] if n not in OWN[path] and "." not in n]
    return [names[i : i + MAX_WARNINGS] for i in range(0, len(names), MAX_WARNINGS)]


@pytest.mark.parametrize("path", OWN)
def test_parameters_without_effect_give_a_warning(server, strict, path):
    for names in some(path):
        texts = warnings(ask(server, path, **dict.fromkeys(names, "something")))
        assert [w.partition(":")[0] for w in texts] == names
        assert all("has no effect here" in w and INSTEAD.get(n, "") in w for n, w in zip(names, texts, strict=True))
        for name in names:
            code = "unsupported_value" if WARNED.get(name) else "unsupported_parameter"
            assert strict.error(ask(strict, path, **{name: "something"})) == (400, name, code)


def test_a_default_value_has_the_right_type(server):
    assert warnings(ask(server, CHAT, typical_p=1, xtc_probability=0.0, mirostat=0.0)) == []
    assert len(warnings(ask(server, CHAT, store=0, n_keep=False, mirostat=False))) == 3
    assert server.error(ask(server, CHAT, use_beam_search=0)) == (400, "use_beam_search", "unsupported_value")


def test_nested_parameters(server, strict):
    for name in ("include_obfuscation", "continuous_usage_stats", "frobnicate"):
        asked = {"stream": True, "stream_options": {"include_usage": True, name: True}}
        with server.client.stream("POST", CHAT, json=body(CHAT, asked)) as answer:
            texts = [w for chunk in events(answer)[:-1] for w in chunk.get("warnings", [])]
        assert texts == [f"stream_options.{name}: has no effect here"]
        assert strict.error(ask(strict, CHAT, **asked))[1] == f"stream_options.{name}"
        asked["stream_options"][name] = False if name != "frobnicate" else None
        assert ask(strict, CHAT, **asked).status_code == 200
    form = {"type": "text", "strict": True, "json_schema": None, "x": 1}
    assert warnings(ask(server, CHAT, response_format=form)) == ["response_format.x: has no effect here"]


@pytest.mark.parametrize("path", OWN)
def test_parameters_that_change_the_meaning_are_refused(server, path):
    names = [name for name in REFUSED if name not in OWN[path]]
    for name in names:
        code = "unsupported_value" if REFUSED[name] else "unsupported_parameter"
        answer = ask(server, path, **{name: ["something"]})
        assert server.error(answer) == (400, name, code)
        assert INSTEAD.get(name, "") in answer.json()["error"]["message"]
    assert warnings(ask(server, path, **dict.fromkeys(names))) == []


def test_requests_of_other_servers_clients(server):
    """The requests are those of the servers' documentation."""
    for asked, names in [
        ({"reasoning_effort": "high", "verbosity": "low", "store": True}, ["reasoning_effort", "store", "verbosity"]),
        ({"reasoning_effort": "none", "verbosity": "medium", "store": False, "service_tier": "auto"}, []),
        ({"cache_prompt": True, "id_slot": -1, "mirostat": 0, "typical_p": 1.0, "samplers": []}, []),
        ({"mirostat": 2, "n_predict": 10}, ["mirostat", "n_predict"]),
        ({"repetition_penalty": 1.0, "min_tokens": 0, "ignore_eos": False, "skip_special_tokens": True}, []),
        ({"keep_alive": "5m", "options": {}, "think": False}, []),
        ({"ttl": 300, "draft_model": "small"}, []),
        ({"chat_template_kwargs": {"enable_thinking": False}}, []),
        ({"metadata": {"a": "b"}, "user": "u", "prediction": {"type": "content", "content": "x"}}, []),
        (
            {"tools": [], "tool_choice": "auto", "parallel_tool_calls": False, "functions": [], "modalities": ["text"]},
            [],
        ),
    ]:
        assert sorted(w.partition(":")[0] for w in warnings(ask(server, CHAT, **asked))) == names


def test_the_length_and_number_of_warnings_are_limited(server):
    texts = warnings(ask(server, CHAT, **{f"p{i}\n" + "x" * 500: i for i in range(1000)}))
    assert len(texts) == MAX_WARNINGS + 1 and texts[-1] == "980 more parameters have no effect here"
    assert all(len(w) < 200 and "\n" not in w for w in texts)


def test_an_integer_may_be_written_as_5_0(server):
    asked = {"max_tokens": 2.0, "n": 1.0, "seed": 3.0, "top_k": -1.0, "logit_bias": [[2.0, -100]]}
    assert ask(server, CHAT, **asked, top_logprobs=2.0, logprobs=True).json()["usage"]["completion_tokens"] == 2
    assert ask(server, TEXT, **asked, logprobs=2.0).json()["usage"]["completion_tokens"] == 2
    assert ask(server, TEXT, prompt=[1.0, 2.0]).status_code == 200
    assert server.post("/detokenize", {"tokens": [35.0]}).status_code == 200
    for wrong in ({"max_tokens": 2.5}, {"n": 1.5}, {"seed": 1e300}, {"top_k": "5"}, {"max_tokens": True}):
        assert server.error(ask(server, CHAT, **wrong))[1] == next(iter(wrong))


def test_minus_one_means_no_limit():
    with serving(n_context=40) as server:
        for path, name in ((CHAT, "max_tokens"), (CHAT, "max_completion_tokens"), (TEXT, "max_tokens")):
            for limit in (-1, -1.0):
                usage = ask(server, path, logit_bias={"2": -100}, **{name: limit}).json()["usage"]
                assert usage["total_tokens"] == 40


def test_an_empty_stop_string_has_no_effect(server):
    wanted = ask(server, CHAT, max_tokens=5).json()["choices"]
    for stop in ("", [""], ["", ""], []):
        assert ask(server, CHAT, max_tokens=5, stop=stop).json()["choices"] == wanted
    assert ask(server, TEXT, max_tokens=5, stop=["", " "]).json()["choices"][0]["text"].count(" ") == 0


def test_logit_bias_as_pairs(server):
    ids = server.post("/tokenize", {"content": "3"}).json()["tokens"]
    see = [
        {"type": "image_url", "image_url": {"url": data_uri(picture("count.png"))}},
        {"type": "text", "text": "Count the stars."},
    ]
    as_object = server.chat(see, logit_bias={str(i): -100 for i in ids}).json()["choices"]
    assert as_object[0]["message"]["content"] != "3"
    assert server.chat(see, logit_bias=[[i, -100] for i in ids]).json()["choices"] == as_object
    assert server.chat(see, logit_bias=[[i, False] for i in ids]).json()["choices"] == as_object
    assert server.chat(see, logit_bias=[]).json()["choices"][0]["message"]["content"] == "3"


SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_object", "schema": SCHEMA},
        {"type": "json_schema", "schema": SCHEMA},
        {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
        {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "description": "b", "schema": SCHEMA}},
    ],
)
def test_a_schema_is_accepted_in_each_of_its_fields(server, form):
    pytest.importorskip("llguidance")
    answer = ask(server, CHAT, response_format=form, max_tokens=50)
    assert warnings(answer) == [] and answer.json()["choices"][0]["finish_reason"] == "stop"
    assert re.fullmatch(r'\{"n":[12]\}', answer.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    "form, param",
    [
        ({"type": "json_object", "schema": {"type": "strin"}}, "response_format.schema"),
        ({"type": "json_object", "json_schema": {"schema": SCHEMA}}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA}, "schema": SCHEMA}, "response_format.json_schema"),
        ({"type": "text", "schema": SCHEMA}, "response_format.schema"),
        ({"type": "grammar", "grammar": "root"}, "response_format.type"),
    ],
)
def test_a_schema_in_the_wrong_field_is_refused(server, form, param):
    pytest.importorskip("llguidance")
    assert server.error(ask(server, CHAT, response_format=form))[:2] == (400, param)


def test_parameters_of_loadmodel(tmp_path):
    text, mmproj = (tmp_path / path.name for path in llava_ref.embedded())
    for path, copy in zip(llava_ref.embedded(), (text, mmproj), strict=True):
        copy.write_bytes(path.read_bytes())
    pair = {"llama_model_path": str(text), "mmproj": str(mmproj), "ctx_len": 256.0}
    route = "/inferences/llamacpp/loadmodel"
    with serving(folders=[tmp_path]) as server:
        for name, values in LOADS.refused.items():
            code = "unsupported_value" if values else "unsupported_parameter"
            assert server.error(server.post(route, pair | {name: "x.gbnf"})) == (400, name, code)
        answer = server.post(
            route, pair | {"ngl": 100, "grp_attn_n": 2, "repeat_last_n": 32, "model_type": "llm", "foo": 1}
        )
        assert answer.json()["message"] == "Model loaded successfully"
        assert [w.partition(":")[0] for w in answer.json()["warnings"]] == ["grp_attn_n", "repeat_last_n", "foo"]
        assert server.models.current.model.n_context == 256
    with serving(folders=[tmp_path], strict=True) as server:
        assert server.error(server.post(route, pair | {"foo": 1})) == (400, "foo", "unsupported_parameter")
        assert (
            server.post(route, pair | {"ngl": 100, "cpu_threads": 2, "embedding": True}).json().get("warnings") is None
        )


def test_parameters_of_tokenize_and_detokenize(server, strict):
    for route, asked in (("/tokenize", {"content": "a"}), ("/detokenize", {"tokens": [300]})):
        assert (
            server.post(route, asked | {"model": "m", "x": None}).json().keys()
            == server.post(route, asked).json().keys()
        )
        assert server.post(route, asked | {"x": 1}).json()["warnings"] == ["x: has no effect here"]
        assert strict.error(strict.post(route, asked | {"x": 1})) == (400, "x", "unsupported_parameter")


def test_serve_has_the_option_strict():
    with Process("--strict") as process:
        import httpx2

        answer = httpx2.post(f"{process.url}/v1/chat/completions", json={"messages": HI, "frobnicate": 1}, timeout=60)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "frobnicate"


def test_openapi_has_every_name():
    schemas = description()["components"]["schemas"]
    for kind in ("ChatRequest", "CompletionRequest"):
        properties = schemas[kind]["properties"]
        for name in [*SILENT, *WARNED, *REFUSED]:
            assert "." in name or name in properties
        assert properties["grammar"]["enum"] == [None, ""] and "additionalProperties" in schemas[kind]
    assert "no effect" in schemas["LoadRequest"]["properties"]["ngl"]["description"].lower()


DOCS = Path(__file__).parents[2] / "docs" / "server.md"


def documented(heading):
    """Return the names in backquotes in the list item with this heading."""
    (item,) = [item for item in re.split(r"\n(?=- |\n)", DOCS.read_text()) if item.startswith(f"- **{heading}")]
    return re.findall(r"`([^`]+)`", item)


@pytest.mark.parametrize(
    "heading, names",
    [
        ("Accepted silently", SILENT),
        ("With a warning", WARNED),
        ("Refused", REFUSED),
        ("`loadmodel`, accepted silently", LOADS.silent),
        ("`loadmodel`, with a warning", LOADS.warned),
        ("`loadmodel`, refused", LOADS.refused),
    ],
)
def test_the_documentation_lists_every_name(heading, names):
    found = documented(heading)
    assert sorted(set(found) - {"loadmodel"}) == sorted(names)
