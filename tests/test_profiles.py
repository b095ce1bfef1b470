"""The table of quirks: every row whole, and nothing in it that its users cannot use."""

from dataclasses import replace
from typing import get_args, get_type_hints

import pytest

from llava_ref.errors import ParameterError
from llava_ref.models.stages import IMAGE
from llava_ref.profiles import PROFILES, QUIRKS, Quirks, describe, resolve
from llava_ref.tools.parser import command_parser

ROWS = pytest.mark.parametrize("name, row", QUIRKS.items(), ids=QUIRKS)


@ROWS
def test_a_sentence_stands_for_each_value_of_the_type(name, row):
    assert tuple(row.values) == get_args(get_type_hints(Quirks)[name])
    for words in row.values.values():
        assert words.split()[0].endswith("s") and not words.endswith("."), "the reference " + words
    assert len(set(row.values.values())) == len(row.values)


@ROWS
def test_each_profile_has_a_value(name, row):
    assert tuple(row.profiles) == tuple(PROFILES) == ("llava", "hf", "llama.cpp")
    for profile, value in row.profiles.items():
        assert value in row.values and getattr(PROFILES[profile], name) == value
    assert set(row.profiles.values()) > {row.profiles["llava"]}, "a quirk is a point on which implementations differ"


@ROWS
def test_a_quirk_shows_in_stages_that_exist(name, row):
    known = {"token_ids", "vision.features", "vision.blk.0.out", "projector.out", "embd", "blk.0.out", "result_norm"}
    known |= {stage.name for stage in IMAGE}
    for start in row.seen_in:
        assert any(stage.startswith(start) for stage in known), start


def test_the_defaults_are_the_original_code():
    assert PROFILES["llava"] == Quirks() == resolve("llava")
    assert list(describe(Quirks())) == list(QUIRKS)


def test_one_quirk_is_changed_and_no_other():
    assert resolve("hf", {"gelu": "tanh"}) == replace(PROFILES["hf"], gelu="tanh") != PROFILES["hf"]


@pytest.mark.parametrize(
    "profile, overrides, words",
    [
        ("hg", {}, ["profile: 'hg'", "llava, hf, llama.cpp"]),
        ("hf", {"jelu": "tanh"}, ["quirk: 'jelu'", "class_token, ", "gelu"]),
        ("hf", {"gelu": "relu"}, ["quirk: gelu: 'relu' is not one of erf, tanh"]),
    ],
)
def test_what_is_not_in_the_table_is_refused(profile, overrides, words):
    with pytest.raises(ParameterError) as caught:
        resolve(profile, overrides)
    assert all(word in str(caught.value) for word in words)


def test_the_help_lists_every_value():
    lines = command_parser("inspect").epilog.partition("quirks, each with its values:\n")[2].splitlines()
    said = {line.split()[0]: line.split()[1::2] for line in lines}
    assert said == {name: list(row.values) for name, row in QUIRKS.items()}
