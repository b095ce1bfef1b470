"""Test that a quoted text contains no control token, however a template cuts it and joins it."""

import random

import pytest

from llava_ref.errors import PromptError
from llava_ref.tokenizer.quote import IMAGE, PRIVATE, Quote

CONTROL = ("<s>", "</s>", "<|im_start|>", "<｜end▁of▁sentence｜>", "EOS", "[INST]")
ALPHABET = "".join({c for text in CONTROL for c in text}) + " \n\té🦙中aZ9\ue000\U000f0000\U0010fffd"


def user_text(rng: random.Random) -> str:
    return "".join(rng.choice(ALPHABET) for _ in range(rng.randrange(1, 30)))


def test_unquote_gives_the_text_back_at_the_same_length():
    rng = random.Random(1)
    for _ in range(300):
        text = user_text(rng)
        quote = Quote.over([text], CONTROL)
        quoted = quote.quote(text)
        assert quote.unquote(quoted) == text
        assert len(quoted) == len(text)


def test_quoted_text_shares_no_character_with_a_control_token_or_the_image_slot():
    rng = random.Random(2)
    forbidden = {c for text in (IMAGE, *CONTROL) for c in text}
    for _ in range(300):
        text = user_text(rng)
        assert not forbidden & set(Quote.over([text], CONTROL).quote(text))


def test_quoted_letters_between_a_templates_brackets_name_no_token():
    quote = Quote.over(["im_start"], CONTROL)
    assert f"<|{'im_start'}|>" in CONTROL
    assert f"<|{quote.quote('im_start')}|>" not in CONTROL


def test_pasting_cut_pieces_makes_no_control_token():
    rng = random.Random(3)
    for _ in range(300):
        texts = [user_text(rng) for _ in range(3)]
        quote = Quote.over(texts, CONTROL)
        pieces = [q[rng.randrange(len(q)) :] for q in map(quote.quote, texts)]
        template = [rng.choice(CONTROL) for _ in range(3)]
        cut = [t[: rng.randrange(len(t))] for t in template]  # never whole
        prompt = "".join(part for pair in zip(cut, pieces, strict=True) for part in pair)
        tokens = [text for text in (*CONTROL, IMAGE) if text in prompt]
        assert all(text in "".join(cut) or any(text in c for c in cut) for text in tokens)


@pytest.mark.parametrize("block", range(len(PRIVATE)))
def test_a_range_that_texts_use_is_skipped(block):
    used = "".join(map(chr, (p for r in PRIVATE[:block] for p in r)))
    quote = Quote.over([used], CONTROL)
    assert quote.base in PRIVATE[block]
    assert quote.quote("a" + used) == chr(quote.base + quote.characters.index("a")) + used


def test_code_points_between_those_that_texts_use_are_taken():
    wanted = len(Quote.over([], CONTROL).characters)
    used = [chr(p) for p in PRIVATE[0][: 2 * wanted : wanted - 1]]  # every gap is too small by one
    quote = Quote.over(["".join(used)], CONTROL)
    assert quote.base > ord(used[-1])
    assert not set(used) & set(quote.quote("".join(CONTROL)))


def test_a_control_token_made_of_private_characters_is_quoted_too():
    quote = Quote.over(["x\ue000y"], ["\ue000"])
    assert "\ue000" not in quote.quote("x\ue000y")
    assert quote.unquote(quote.quote("x\ue000y")) == "x\ue000y"


def test_texts_that_use_every_private_character_are_an_error():
    with pytest.raises(PromptError, match="private-use characters"):
        Quote.over(["".join(chr(p) for block in PRIVATE for p in block)], CONTROL)
