"""Test the ways to ask: questions and pictures are the same, only the conversation around them differs."""

import pytest

from llava_ref.scenes import WAYS, Question, fresh_asked, fresh_questions
from llava_ref.scenes.asking import SYSTEM, ask


def kinds(message):
    """Return "text" for a string, else the types of the parts."""
    content = message["content"]
    return "text" if isinstance(content, str) else [part["type"] for part in content]


def test_every_way_asks_the_same_questions_about_the_same_pictures():
    plain = list(fresh_questions(6, 3))
    for way in WAYS:
        for (picture, question), asked in zip(plain, fresh_asked(6, 3, way), strict=True):
            assert asked.question == question
            (shown,) = [
                p["image"] for m in asked.messages for p in m["content"] if isinstance(p, dict) and "image" in p
            ]
            assert shown.tobytes() == picture.tobytes()


@pytest.mark.parametrize(
    "way, shape",
    [
        ("picture-first", [("user", ["image", "text"])]),
        ("text-first", [("user", ["text", "image"])]),
        ("system", [("system", "text"), ("user", ["image", "text"])]),
        ("system-text-first", [("system", "text"), ("user", ["text", "image"])]),
        ("second-turn", [("user", ["image", "text"]), ("assistant", "text"), ("user", "text")]),
        ("json", [("user", ["image", "text"])]),
    ],
)
def test_the_messages_and_parts_of_each_way(way, shape):
    (asked,) = fresh_asked(1, 0, way)
    assert [(m["role"], kinds(m)) for m in asked.messages] == shape
    if way.startswith("system"):
        assert asked.messages[0]["content"] == SYSTEM
    assert (asked.schema is not None) == (way == "json")


def test_a_second_turn_follows_another_question_with_its_right_answer():
    other = Question("colour", "What colour is the star?", "red")
    asked = ask(None, Question("count", "Count the stars.", "2"), "second-turn", other)
    first, answer, last = asked.messages
    assert first["content"][1]["text"] == other.text
    assert (answer["content"], last["content"]) == ("red", "Count the stars.")


@pytest.mark.parametrize(
    "kind, answer, right, wrong",
    [
        ("colour", "blue", '{"colour": "blue"}', '{"colour":"red"}'),
        ("count", "3", '{"count":3}', '{"count":"3"}'),
        ("what at", "a blue star", '{"what":"a blue star"}', '{"what at":"a blue star"}'),
        ("where", "top", '{"where":"top"}', '{"where":"top"'),
        ("word", "CAT", '{"word":"CAT"}', "CAT"),
    ],
)
def test_a_json_answer_is_judged_by_its_value(kind, answer, right, wrong):
    asked = ask(None, Question(kind, "?", answer), "json", Question(kind, "?", answer))
    assert asked.right(right) and not asked.right(wrong)
    assert asked.schema["required"] == list(asked.schema["properties"])


def test_a_plain_answer_is_judged_to_the_letter():
    asked = ask(None, Question("word", "?", "CAT"), "picture-first", Question("word", "?", "CAT"))
    assert asked.right(" CAT") and not asked.right("CAT.") and not asked.right("cat")
