"""Test that training encodes a conversation as inference does: the same ids in every profile."""

import pytest

import llava_ref
from llava_ref.profiles import PROFILES

tokens = pytest.importorskip("training.tokens", reason="the training folder is not beside the tests")

QUESTION = "What colour is the circle?"
PICTURE = {"type": "image", "image": llava_ref.embedded()[0].parent / "pictures" / "colour.png"}
TEXT = {"type": "text", "text": QUESTION}
FIRST, SECOND = ({"type": "image", "image": PICTURE["image"]} for _ in range(2))


def user(*content):
    return {"role": "user", "content": list(content)}


def turn(*content, answer="blue"):
    return tokens.TrainingTurn(content, tokens.TrainingAnswer("colour", answer))


PICTURE_FIRST = (0, "\n", QUESTION)
CONVERSATIONS = {  # name: messages, system text, turns
    "picture first": ([user(PICTURE, TEXT)], "", [turn(*PICTURE_FIRST)]),
    "system": ([{"role": "system", "content": "Be brief."}, user(PICTURE, TEXT)], "Be brief. ", [turn(*PICTURE_FIRST)]),
    "second turn": (
        [user(PICTURE, TEXT), {"role": "assistant", "content": "blue"}, {"role": "user", "content": "How many?"}],
        "",
        [turn(*PICTURE_FIRST), turn("How many?")],
    ),
    "late picture": (
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}, user(PICTURE, TEXT)],
        "",
        [turn("Hi", answer="Hello!"), turn(*PICTURE_FIRST)],
    ),
    "two pictures": ([user(FIRST, SECOND, TEXT)], "", [turn(0, "\n", 1, "\n", QUESTION)]),
    "no picture": ([{"role": "user", "content": QUESTION}], "", [turn(QUESTION)]),
}
TEXT_FIRST = ([user(TEXT, PICTURE)], "", [turn(QUESTION, "\n", 0)])


@pytest.fixture(scope="module", params=PROFILES)
def model(request):
    return llava_ref.load(*llava_ref.embedded(), backend="numpy", profile=request.param)


def inferred(model, messages):
    """Return the ids of the prompt, with -1 for each row of a picture."""
    return list(model.request(messages).token_ids)


def trained(model, system, turns):
    """Return the ids up to the last answer, with -1 for each row of a picture."""
    style = model.settings["quirks"]["text_pieces"]
    segment = tokens.ConversationEncoder(model.tokenizer, style).segment(system, turns)
    ids = [-1 if patch >= 0 else i for i, patch in zip(segment.ids, segment.patches, strict=True)]
    return ids[: max(r for r, g in zip(segment.rows, segment.groups, strict=True) if first_of(segment, r, g)) + 1]


def first_of(segment, row, group):
    """Say whether `row` comes right before the first token of the last answer."""
    return group == segment.groups[-1] and row == min(
        r for r, g in zip(segment.rows, segment.groups, strict=True) if g == group
    )


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_has_the_tokens_of_inference(model, name):
    messages, system, turns = CONVERSATIONS[name]
    assert trained(model, system, turns) == inferred(model, messages)


def test_a_text_before_its_picture_has_the_tokens_of_the_order_as_given():
    model = llava_ref.load(*llava_ref.embedded(), backend="numpy", profile="llama.cpp")
    messages, system, turns = TEXT_FIRST
    assert trained(model, system, turns) == inferred(model, messages)


def test_a_follow_up_continues_the_shared_picture(model):
    messages, system, turns = CONVERSATIONS["second turn"]
    encoder = tokens.ConversationEncoder(model.tokenizer, model.settings["quirks"]["text_pieces"])
    whole = encoder.segment(system, turns)
    rest = encoder.follow([turn("\n", QUESTION), turns[1]])
    start = len(whole.ids) - len(rest.ids)
    assert whole.patches[:start][-1] == tokens.PATCHES - 1
    assert rest.ids == whole.ids[start:] and rest.answers == whole.answers


def test_only_the_values_of_a_forced_json_answer_are_learned(model):
    answer = tokens.TrainingAnswer("json", '{"colour": "blue"}', ((12, 17), (17, 19)), is_json=True)
    segment = tokens.ConversationEncoder(model.tokenizer, "separate").segment(
        "", [tokens.TrainingTurn((0, "\n", QUESTION), answer)]
    )
    learned = b"".join(model.tokenizer.token_bytes(i) for i in segment.answers[:-1])
    assert learned == b'blue"}' and segment.answers[-1] == tokens.EOS
