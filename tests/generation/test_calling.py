"""Calls of functions in answers: the grammar that random weights keep to, and how calls are read as they come."""

import json
import re

import pytest

pytest.importorskip("llguidance", reason="the server extra is not installed")

import llava_ref
from llava_ref.chat.call_form import PLAIN, CallForm
from llava_ref.chat.calls import Tool
from llava_ref.errors import ParameterError
from llava_ref.generation.call_grammar import MAX_SCHEMAS
from llava_ref.generation.calling import CallArguments, CallBegun, CallReader
from llava_ref.generation.grammar import JsonGrammars
from llava_ref.generation.sampling import Sampling

from ..support.tiny_pair import Tiny, write_pair

LEVELS = ["{", '"}', "é"]
PARAMETERS = {"n": {"type": "integer", "maximum": 99, "minimum": 0}, "of": {"enum": LEVELS}}
COUNT = Tool("count", "", {"type": "object", "properties": PARAMETERS, "required": ["n", "of"]}, "tools[0]")
STOP = Tool("stop.now", "", {"type": "object", "properties": {}}, "tools[1]")
TOOLS = {tool.name: tool for tool in (COUNT, STOP)}
FORMS = {
    "plain": PLAIN,
    "Qwen": CallForm('<tool_call>\n{"name": "', '", "arguments": ', '}\n</tool_call>\n<tool_call>\n{"name": "',
                     "}\n</tool_call>"),
    "Llama": CallForm('{"name": "', '", "parameters": ', None, "}"),
    "list": CallForm('[{"name":"', '","arguments":', None, "}]", ",", ":"),
    "Mistral": CallForm("[TOOL_CALLS]", "[ARGS]", "[TOOL_CALLS]", "", ",", ":"),
}  # fmt: skip
EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return llava_ref.load(*write_pair(tmp_path_factory.mktemp("pair"), Tiny(context=512)), threads=1)


@pytest.fixture(scope="module")
def grammars(model):
    return JsonGrammars(model.tokenizer)


def answer(model, grammar, seed=0, limit=400):
    sampling = Sampling(grammar=grammar, temperature=5.0, seed=seed)
    return model.answer(model.raw_request("the"), sampling, max_tokens=limit).finish()


def read(form, text, step=1):
    """Read an answer that comes in pieces of `step` characters. Return the reader, and its words and calls put together
    from what it said."""
    reader, words, calls = CallReader(form, list(TOOLS)), "", []
    said = [one for i in range(0, len(text), step) for one in reader.push(text[i : i + step])] + reader.flush()
    for one in said:
        if isinstance(one, CallBegun):
            assert one.index == len(calls)
            calls.append([one.call.name, ""])
        elif isinstance(one, CallArguments):
            calls[one.index][1] += one.text
        else:
            words += one
    assert [[call.name, call.arguments] for call in reader.calls] == calls and reader.text == words
    return reader, words, calls


@EVERY_FORM
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_random_weights_that_must_call_do(model, grammars, form, several, seed):
    grammar = grammars.calls(form, list(TOOLS.values()), several=several, text=False)
    reply = answer(model, grammar, seed)
    reader, words, calls = read(form, reply.text, step=3)
    assert reply.finish_reason == "stop" and reader.called and not words.strip()
    assert len(calls) == 1 or several and form.joint
    for name, text in calls:
        arguments = json.loads(text)
        assert arguments == {} if name == "stop.now" else set(arguments) == {"n", "of"}
        assert arguments.get("n", 0) in range(100) and arguments.get("of", "{") in LEVELS


@EVERY_FORM
def test_where_words_are_allowed_random_weights_speak(model, grammars, form):
    grammar = grammars.calls(form, [COUNT], several=True, text=True)
    replies = [answer(model, grammar, seed, 40) for seed in range(4)]
    assert any(read(form, reply.text)[1] for reply in replies)


@EVERY_FORM
def test_with_a_schema_an_answer_is_a_call_or_the_json(model, grammars, form):
    grammar = grammars.calls(form, [COUNT], several=False, text={"type": "object", "properties": {"a": {"enum": [1]}},
                                                                 "required": ["a"]})  # fmt: skip
    kinds = set()
    for seed in range(12):
        _, words, calls = read(form, answer(model, grammar, seed).text)
        kinds.add(bool(calls))
        assert calls or json.loads(words) == {"a": 1}
    assert True in kinds or form.trigger  # a trigger of many letters is seldom guessed


@EVERY_FORM
@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_calls_are_read_in_pieces_of_any_size(form, step):
    arguments = ['{"n": 3, "of": "{"}', '{"of": "\\"}", "n": {"a": [1, {}]}}']
    text = form.opening + f"count{form.between}{arguments[0]}"
    if form.joint:
        text += f"{form.joint}stop.now{form.between}{arguments[1]}"
    reader, words, calls = read(form, text + form.closing, step)
    wanted = [["count", arguments[0]], ["stop.now", arguments[1]]]
    assert calls == (wanted if form.joint else wanted[:1]) and words == "" and reader.called


@pytest.mark.parametrize("name", ["Qwen", "Mistral"])
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_words_before_a_call_are_words(name, step):
    form = FORMS[name]
    _, words, calls = read(form, f"I shall <look> [at] it. {form.call('count')}" + '{"n": 1}' + form.closing, step)
    assert words == "I shall <look> [at] it. " and calls == [["count", '{"n": 1}']]


@EVERY_FORM
@pytest.mark.parametrize("text", [
    "red", '{"name": "colour"}', "<tool_call>\n5", "[TOOL_CALLS]other[ARGS]{}", "  ", "<tool", "", 'a {"name": "count"',
])  # fmt: skip
@pytest.mark.parametrize("step", [1, 1000])
def test_what_is_no_call_is_words_to_the_last_character(form, text, step):
    reader, words, calls = read(form, text, step)
    assert words == text and not calls and not reader.called


@EVERY_FORM
def test_an_answer_that_is_cut(form):
    """In the head of a call it is words; in the arguments, a call that is not whole."""
    head = form.call("count")
    for end in range(1, len(head)):
        assert read(form, head[:end])[1:] == (head[:end], [])
    reader, words, calls = read(form, head + '{"n": 1')
    assert not reader.called and words == "" and calls == [["count", '{"n": 1']]


def test_a_schema_that_cannot_be_kept_is_named(grammars):
    bad = Tool("bad", "", {"type": "object", "properties": {"x": {"multipleOf": 3}}}, "tools[1].function")
    with pytest.raises(ParameterError, match=re.escape("tools[1].function: parameters: multipleOf is not supported")):
        grammars.calls(PLAIN, [COUNT, bad], several=True, text=False)
    worse = Tool("bad", "", {"type": "object", "properties": {"x": {"$ref": "#/nowhere"}}}, "tools[1].function")
    with pytest.raises(ParameterError, match=re.escape("tools[1].function: parameters")):
        grammars.calls(PLAIN, [COUNT, worse], several=True, text=False)


def test_all_schemas_together_have_a_bound(grammars):
    long = {"type": "object", "properties": {"x": {"description": "d" * (MAX_SCHEMAS // 8)}}}
    tools = [Tool(f"f{i}", "", long, f"tools[{i}]") for i in range(9)]
    with pytest.raises(ParameterError, match=f"of schemas together, expected at most {MAX_SCHEMAS:,}"):
        grammars.calls(PLAIN, tools, several=True, text=False)
