"""Objects of a JSON Schema are closed unless the schema opens them: which texts a grammar then takes."""

import json

import numpy as np
import pytest

pytest.importorskip("llguidance", reason="the server extra is not installed")

import llava_ref
from llava_ref.errors import ParameterError
from llava_ref.generation.grammar import JsonGrammars
from llava_ref.generation.schemas import MAX_STEPS, TooManyBranches, closed

from ..support.tiny_pair import write_pair


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return llava_ref.load(*write_pair(tmp_path_factory.mktemp("pair")), threads=1).tokenizer


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return JsonGrammars(tokenizer)


@pytest.fixture(scope="module")
def takes(grammars, tokenizer):
    """Whether a schema's grammar takes a value as JSON, to the end."""
    pieces = [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]

    def it(schema, value):
        matcher, left = grammars.grammar(schema).start(1000), json.dumps(value, separators=(",", ":")).encode()
        while left:
            fitting = [i for i in np.flatnonzero(matcher.allowed()) if pieces[i] and left.startswith(pieces[i])]
            if not fitting:
                return False
            best = max(fitting, key=lambda i: len(pieces[i]))
            matcher.accept(int(best))
            left = left[len(pieces[best]) :]
        return bool(matcher.allowed()[2])

    return it


WORD, WHOLE = {"type": "string"}, {"type": "integer"}


def thing(**properties):
    return {"type": "object", "properties": properties, "required": list(properties)}


A, B = thing(a=WORD), thing(b=WHOLE)
CASES = {
    "plain": (A, [{"a": "x"}], [{"a": "x", "b": 1}]),
    "nested": (thing(o=A), [{"o": {"a": "x"}}], [{"o": {"a": "x", "b": 1}}, {"o": {"a": "x"}, "p": 1}]),
    "in an array": ({"type": "array", "items": A}, [[], [{"a": "x"}]], [[{"a": "x", "b": 1}]]),
    "prefixItems": (
        {"type": "array", "prefixItems": [A], "items": B},
        [[{"a": "x"}, {"b": 1}]],
        [[{"a": "x", "b": 1}], [{"a": "x"}, {"b": 1, "a": "x"}]],
    ),
    "a reference": ({"$ref": "#/$defs/A", "$defs": {"A": A}}, [{"a": "x"}], [{"a": "x", "b": 1}]),
    "draft 7 definitions": (
        {"definitions": {"a/b c": A}, **thing(o={"$ref": "#/definitions/a~1b%20c"})},
        [{"o": {"a": "x"}}],
        [{"o": {"a": "x", "b": 1}}],
    ),
    "a tree": (
        {"type": "object", "properties": {"v": WHOLE, "next": {"$ref": "#"}}, "required": ["v"]},
        [{"v": 1}, {"v": 1, "next": {"v": 2}}],
        [{"v": 1, "w": 1}, {"v": 1, "next": {"v": 2, "w": 3}}],
    ),
    "anyOf": ({"anyOf": [A, B]}, [{"a": "x"}, {"b": 1}], [{"a": "x", "b": 1}, {"c": 1}]),
    "or null": ({"anyOf": [A, {"type": "null"}]}, [{"a": "x"}, None], [{"a": "x", "b": 1}]),
    "allOf": ({"allOf": [A, B]}, [{"a": "x", "b": 1}], [{"a": "x"}, {"a": "x", "b": 1, "c": 2}, {"a": 1, "b": 1}]),
    "allOf of references": (
        {"allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}], "$defs": {"A": A, "B": B}},
        [{"a": "x", "b": 1}],
        [{"a": "x"}, {"a": "x", "b": 1, "c": 2}],
    ),
    "a reference with more": (
        {"$ref": "#/$defs/A", **B, "$defs": {"A": A}},
        [{"b": 1, "a": "x"}],
        [{"b": 1}, {"b": 1, "a": "x", "c": 2}, {"b": 1, "a": 1}],
    ),
    "properties beside anyOf": (
        {**A, "anyOf": [B, thing(c=WHOLE)]},
        [{"a": "x", "b": 1}, {"a": "x", "c": 1}],
        [{"a": "x"}, {"a": "x", "b": 1, "c": 1}, {"a": "x", "b": 1, "d": 1}],
    ),
    "allOf inside a property": (
        {"allOf": [thing(o=A), thing(o=B)]},
        [{"o": {"a": "x", "b": 1}}],
        [{"o": {"a": "x"}}, {"o": {"a": "x", "b": 1, "c": 1}}],
    ),
    "allOf inside items": (
        {"type": "array", "allOf": [{"items": A}, {"items": B}]},
        [[{"a": "x", "b": 1}]],
        [[{"a": "x"}], [{"a": "x", "b": 1, "c": 1}]],
    ),
    "patterns": (
        {"type": "object", "patternProperties": {"^n[0-9]$": WHOLE}},
        [{}, {"n1": 1, "n2": 2}],
        [{"n1": "x"}, {"m": 1}],
    ),
    "properties and patterns": (
        {**A, "patternProperties": {"^n[0-9]$": WHOLE}},
        [{"a": "x"}, {"a": "x", "n1": 1}],
        [{"a": "x", "m": 1}],
    ),
    "patterns across allOf": (
        {"allOf": [A, {"patternProperties": {"^n[0-9]$": WHOLE}}]},
        [{"a": "x", "n1": 1}],
        [{"a": "x", "m": 1}],
    ),
    "required and not described": ({**A, "required": ["a", "z"]}, [{"a": "x", "z": [1]}], [{"a": "x"}]),
    "no property at all": ({"type": "object", "properties": {}}, [{}], [{"a": 1}]),
    "an object or a string": ({**A, "type": ["object", "string"]}, ["s", {"a": "x"}], [{"a": "x", "b": 1}]),
    # opened, or never closed: as they were
    "opened": ({**A, "additionalProperties": True}, [{"a": "x"}, {"a": "x", "b": 1}], [{"b": 1}]),
    "opened by an empty schema": ({**A, "additionalProperties": {}}, [{"a": "x", "b": 1}], []),
    "opened for numbers": ({**A, "additionalProperties": WHOLE}, [{"a": "x", "b": 1}], [{"a": "x", "b": "y"}]),
    "opened inside allOf": ({"allOf": [{**A, "additionalProperties": True}, B]}, [{"a": "x", "b": 1, "c": 2}], []),
    "opened outside, closed inside": (
        {**thing(o=A), "additionalProperties": True},
        [{"o": {"a": "x"}, "p": 1}],
        [{"o": {"a": "x", "b": 1}}],
    ),
    "the values of a map": (
        {"type": "object", "additionalProperties": A},
        [{"k": {"a": "x"}, "l": {"a": "y"}}],
        [{"k": {"a": "x", "b": 1}}],
    ),
    "any object": ({"type": "object"}, [{}, {"a": 1, "b": {"c": []}}], [[], 1]),
    "any object with one name": ({"type": "object", "required": ["a"]}, [{"a": 1, "b": 2}], [{"b": 2}]),
    "anything": ({}, [{"a": 1}, [], 1, None], []),
    "a property of any kind": (thing(a=True), [{"a": {"b": {"c": 1}}}], [{"a": 1, "b": 1}]),
    "closed already": ({**A, "additionalProperties": False}, [{"a": "x"}], [{"a": "x", "b": 1}]),
}


@pytest.mark.parametrize("schema, good, bad", CASES.values(), ids=CASES)
def test_which_objects_a_schema_takes(takes, schema, good, bad):
    assert [takes(schema, value) for value in good] == [True] * len(good)
    assert [takes(schema, value) for value in bad] == [False] * len(bad)


def test_words_of_the_schema_language_may_be_names(takes):
    schema = thing(properties=WORD, allOf=A, additionalProperties=WHOLE)
    assert takes(schema, {"properties": "x", "allOf": {"a": "x"}, "additionalProperties": 1})
    assert not takes(schema, {"properties": "x", "allOf": {"a": "x", "b": 1}, "additionalProperties": 1})


def test_constants_are_no_schemas():
    schema = {"const": {"properties": {}}, "enum": [{"properties": {"a": 1}}], "default": {"properties": {}}}
    assert closed(schema) == schema


def test_the_schema_given_is_not_changed():
    schema = {"allOf": [A, {"$ref": "#/$defs/B"}], "$defs": {"B": B}}
    before = json.dumps(schema)
    closed(schema)
    assert json.dumps(schema) == before


def test_references_in_a_circle_and_to_nowhere():
    for reference in ("#/$defs/x", "#/$defs/y", "#", "#name", "https://example.com/a", 7, "#/$defs/x/type/0"):
        closed({"$ref": reference, "properties": {"a": {}}, "$defs": {"x": {"$ref": "#/$defs/x"}}})


def test_references_that_multiply_are_refused(grammars):
    doubled = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    schema = {**A, "$ref": "#/$defs/d0", "$defs": doubled | {"d40": B}}
    with pytest.raises(TooManyBranches):
        closed(schema)
    with pytest.raises(ParameterError, match=r"response_format.json_schema: schema: .* multiply"):
        grammars.grammar(schema)
    assert MAX_STEPS >= 10_000
