"""Answers that are JSON, whatever the model would like to say."""

import json

import numpy as np
import pytest

pytest.importorskip("llguidance", reason="the server extra is not installed")

import llava_ref
from llava_ref.chat.call_form import PLAIN
from llava_ref.chat.calls import Tool
from llava_ref.errors import ParameterError
from llava_ref.generation.grammar import MAX_SCHEMA, JsonGrammars
from llava_ref.generation.sampling import Sampling

from ..support.tiny_pair import Tiny, vocabulary, write_pair

SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 3, "maximum": 17},
        "name": {"type": "string", "maxLength": 5},
        "tags": {"type": "array", "items": {"enum": ["é", "<unk>", "a\\b"]}, "maxItems": 2},
    },
    "required": ["n", "name", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return llava_ref.load(*write_pair(tmp_path_factory.mktemp("pair"), Tiny(context=512)), threads=1)


@pytest.fixture(scope="module")
def grammars(model):
    return JsonGrammars(model.tokenizer)


def answer(model, grammar, max_tokens=400, **settings):
    request = model.raw_request("the")
    return model.answer(request, Sampling(grammar=grammar, **settings), max_tokens=max_tokens).finish()


@pytest.mark.parametrize("seed", range(8))
def test_random_weights_keep_to_a_schema(model, grammars, seed):
    reply = answer(model, grammars.grammar(SCHEMA), temperature=5.0, seed=seed)
    value = json.loads(reply.text)
    assert reply.finish_reason == "stop" and list(value) == ["n", "name", "tags"]
    assert 3 <= value["n"] <= 17 and len(value["name"]) <= 5
    assert len(value["tags"]) <= 2 and set(value["tags"]) <= {"é", "<unk>", "a\\b"}


OPEN = {  # as people write them: no word about other properties
    "type": "object",
    "properties": {
        "shape": {"$ref": "#/$defs/shape"},
        "more": {"type": "array", "items": {"$ref": "#/$defs/shape"}, "maxItems": 2},
    },
    "required": ["shape", "more"],
    "$defs": {"shape": {"type": "object", "properties": {"sides": {"enum": [3, 4]}}, "required": ["sides"]}},
}


@pytest.mark.parametrize("seed", range(8))
def test_random_weights_come_to_an_end(model, grammars, seed):
    reply = answer(model, grammars.grammar(OPEN), temperature=5.0, seed=seed)
    value = json.loads(reply.text)
    assert reply.finish_reason == "stop" and list(value) == ["shape", "more"] and list(value["shape"]) == ["sides"]


ANYTHING = {"type": "object", "required": ["a", "b"]}
NAMES = {
    "type": "object",
    "properties": {"names": {"type": "array", "items": {"type": "string"}}},
    "required": ["names"],
}
DEEP = {"type": "object", "properties": {"more": {"$ref": "#"}, "x": {"type": "number"}}, "required": ["x"]}


@pytest.mark.parametrize(
    "schema", [None, ANYTHING, NAMES, DEEP, {}], ids=["free", "required", "strings", "deep", "any"]
)
@pytest.mark.parametrize("limit", [16, 40, 120])
def test_what_would_go_on_is_led_to_its_end(model, grammars, schema, limit):
    """Random weights never end a string by themselves. The JSON is complete, and said to be cut short."""
    reasons = set()
    for seed in range(6):
        reply = answer(model, grammars.grammar(schema), limit, temperature=5.0, seed=seed)
        value = json.loads(reply.text)
        assert not isinstance(value, dict) or schema not in (ANYTHING, NAMES) or set(schema["required"]) <= set(value)
        assert len(reply.token_ids) <= limit
        reasons.add(reply.finish_reason)
    assert "length" in reasons or schema == {}


def test_no_choice_is_taken_from_an_answer_that_fits(model, grammars):
    schema = {"type": "object", "properties": {"a": {"enum": ["the", "of", "blue"]}}, "required": ["a"]}
    grammar = grammars.grammar(schema)
    for seed in range(6):
        free = answer(model, grammar, temperature=5.0, seed=seed)
        tight = answer(model, grammar, len(free.token_ids), temperature=5.0, seed=seed)
        assert (tight.text, tight.token_ids, tight.finish_reason) == (free.text, free.token_ids, "stop")


def test_no_room_for_any_json(model, grammars):
    reply = answer(model, grammars.grammar(SCHEMA), 3, temperature=5.0, seed=0)
    assert reply.finish_reason == "length" and len(reply.token_ids) == 3 and reply.text.startswith("{")


def test_one_grammar_serves_several_answers(model, grammars):
    grammar = grammars.grammar({"const": "the"})
    assert [answer(model, grammar, temperature=3.0, seed=i).text for i in range(3)] == ['"the"'] * 3


def test_control_tokens_are_no_text(model, grammars):
    matcher = grammars.grammar({"enum": ["<s>", "</s>"]}).start(400)
    n_vocab = len(vocabulary()[0])
    for byte in b'"<':
        assert not matcher.allowed()[[0, 1, 2]].any()
        matcher.accept(
            next(i for i in np.flatnonzero(matcher.allowed()) if model.tokenizer.token_bytes(i) == bytes([byte]))
        )
    assert matcher.allowed().shape == (n_vocab,)


def test_the_end_comes_only_when_the_json_is_complete(grammars):
    matcher = grammars.grammar({"type": "integer", "minimum": 1, "maximum": 12}).start(400)
    assert not matcher.allowed()[2]
    matcher.accept(ord("1") + 3)
    assert matcher.allowed()[2] and matcher.allowed()[ord("2") + 3], "1 or 12"
    matcher.accept(ord("2") + 3)
    assert list(np.flatnonzero(matcher.allowed())) == [2]


@pytest.mark.parametrize(
    "schema, words",
    [
        ({"type": "strin"}, "Invalid type"),
        ({"not": {}}, "not"),
        ({"$ref": "https://example.com/a"}, "retriev"),
        ({"properties": {"multipleOf": {"type": "integer", "multipleOf": 7}}}, "multipleOf is not supported"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"enum": ["x" * MAX_SCHEMA]}, "characters"),
    ],
)
def test_a_schema_that_cannot_be_kept(grammars, schema, words):
    with pytest.raises(ParameterError, match=words) as caught:
        grammars.grammar(schema)
    assert caught.value.where == "response_format.json_schema" and caught.value.field == "schema"


def test_a_property_may_have_any_name(grammars):
    grammars.grammar({"type": "object", "properties": {"multipleOf": {"type": "integer"}}})


def test_a_schema_that_llguidance_gives_up_on_is_an_error(model, grammars):
    """It stops at 2,000 possible continuations, and calls that the end; the answer would be half of some JSON."""
    many = {"type": "object", "properties": {f"k{i}": {"type": "integer"} for i in range(600)}}
    with pytest.raises(ParameterError, match="max is 2000") as caught:
        answer(model, grammars.grammar(many, "text.format", "schema"), 16)
    assert (caught.value.where, caught.value.field) == ("text.format", "schema")
    calls = grammars.calls(PLAIN, [Tool("f", "", many, "tools[0]")], several=False, text=False)
    with pytest.raises(ParameterError, match=r"^tools: parameters: .* max is 2000"):
        answer(model, calls, 32)
