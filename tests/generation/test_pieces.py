"""Tokens of a prompt and of an answer against the text they make: joined they are it, for every kind of vocabulary."""

import random
from pathlib import Path

import numpy as np
import pytest

from llava_ref import gguf
from llava_ref.chat.chunks import TextChunk, chunks, raw
from llava_ref.generation.answer import Answer
from llava_ref.generation.pieces import AnswerPieces, id_pieces, prompt_pieces
from llava_ref.generation.scores import score
from llava_ref.generation.stops import StopStrings
from llava_ref.profiles import PROFILES
from llava_ref.tokenizer.bpe import byte_letters
from llava_ref.tokenizer.tokenizer import Tokenizer

from ..support.vocabularies import ODD, SPM_SPECIAL, SPM_TYPES, SPM_WORDS, bpe_keys, load, odd_text, spm_keys

REAL = Path(__file__).parents[3] / "shared" / "data" / "vocab"
MADE = {
    "spm": spm_keys(),
    "spm without space": spm_keys(ggml_add_space_prefix=False),
    "spm without bytes": spm_keys(
        ggml_tokens=SPM_SPECIAL + SPM_WORDS,
        ggml_scores=[-float(i) for i in range(len(SPM_SPECIAL + SPM_WORDS))],
        ggml_token_type=SPM_TYPES + [1] * len(SPM_WORDS),
    ),
    "spm that swallows blanks": spm_keys(general_name="phi-3"),
    "bpe": bpe_keys(),
    "bpe with BOS": bpe_keys(ggml_add_bos_token=True, ggml_bos_token_id=260, ggml_eos_token_id=261),
}
FILES = ["llama-spm", "llama-bpe", "phi-3", "qwen2"]


@pytest.fixture(scope="module", params=[*MADE, *FILES])
def tokenizer(request, tmp_path_factory):
    if request.param in MADE:
        return load(tmp_path_factory.mktemp("vocabulary"), **MADE[request.param])
    path = REAL / f"ggml-vocab-{request.param}.gguf"
    if not path.exists():
        pytest.skip("the vocabulary files are not here")
    return Tokenizer.from_gguf(gguf.read(path))


TEXTS = [
    "",
    " ",
    "a",
    " a",
    "  a  b ",
    "ab abab hello",
    "The quick brown fox.\n\n  jumps\tover",
    "é ß 中文 🦙🦙 e\u0301 \u200d x",
    "▁a ▁ ▁▁b",
    "<s>hello</s> <|im_start|>user\n\n hi<|im_end|>\n",
    "<|user|>\n\t Hi<|end|>\n<|assistant|> there",
    "<unk> <0x41> hello<|",
    "def f(x):\n    return x  # 123456789\n",
]


def ids_of(tokenizer, text, profile="llava"):
    prompt = chunks(raw(text, 0, tokenizer), tokenizer, PROFILES[profile])
    return [i for chunk in prompt if isinstance(chunk, TextChunk) for i in chunk.token_ids]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_prompts_pieces_are_the_prompt(tokenizer, profile):
    rng = random.Random(0)
    for text in [*TEXTS, *(odd_text(rng) for _ in range(300))]:
        ids = ids_of(tokenizer, text, profile)
        pieces = prompt_pieces(tokenizer, text, ids)
        assert len(pieces) == len(ids) and ("".join(pieces) == text or not ids)


def plain(tokenizer, token):
    """Whether a token stands for whole characters, and always the same ones."""
    data = tokenizer.token_bytes(token)
    return token not in tokenizer.vocabulary.control and data and data.decode("utf-8", "ignore").encode() == data


@pytest.mark.parametrize("profile", PROFILES)
def test_each_piece_is_its_own_tokens_text(tokenizer, profile):
    """No token has what another stands for: but for blanks around control tokens and what the vocabulary lacks."""
    if any(tokenizer.vocabulary.strip_right) or any("lose" in note for note in tokenizer.notes):
        pytest.skip("loses text")
    compared = 0
    for text in TEXTS:
        ids = ids_of(tokenizer, text, profile)
        for token, piece in zip(ids, prompt_pieces(tokenizer, text, ids), strict=True):
            if plain(tokenizer, token) and tokenizer.vocabulary.unknown_id not in ids:
                own, piece = (
                    tokenizer.piece(token),
                    piece.replace("▁", " ") if tokenizer.vocabulary.pre is None else piece,
                )
                assert piece in (own, own.removeprefix(" ")), (text, token)
                compared += 1
            elif token in tokenizer.vocabulary.control - {tokenizer.vocabulary.unknown_id}:
                assert piece in ("", tokenizer.piece(token))
    assert compared > 20


def test_a_character_of_several_tokens_is_the_last_ones(tmp_path):
    for keys in (MADE["spm"], MADE["bpe"]):
        tokenizer = load(tmp_path, **keys)
        ids = ids_of(tokenizer, "a🦙b")
        assert prompt_pieces(tokenizer, "a🦙b", ids)[-6:] == ["a", "", "", "", "🦙", "b"]
        assert id_pieces(tokenizer, ids)[-5:] == ["", "", "", "🦙", "b"]


def test_bos_and_the_hidden_space_are_no_text(tmp_path):
    tokenizer = load(tmp_path, **MADE["spm"])
    ids = ids_of(tokenizer, "ab a")
    assert [tokenizer.text_of(i) for i in ids] == ["<s>", "▁ab", "▁a"]
    assert prompt_pieces(tokenizer, "ab a", ids) == ["", "ab", " a"]
    assert prompt_pieces(tokenizer, " ab", ids_of(tokenizer, " ab")) == ["", " ", "ab"], "▁, ▁ab"
    assert prompt_pieces(tokenizer, "<s>ab", ids_of(tokenizer, "<s>ab")) == ["<s>", "ab"], "typed, so it is text"


def test_swallowed_blanks_go_to_the_token_that_swallowed_them(tmp_path):
    tokenizer = load(tmp_path, **MADE["spm that swallows blanks"])
    text = "<|user|> \n\na<|im|> b"
    assert prompt_pieces(tokenizer, text, ids_of(tokenizer, text)) == ["", "<|user|> \n\n", "a", "<|im|> ", "b"]


def test_unknown_characters_have_a_piece_each(tmp_path):
    tokenizer = load(tmp_path, **MADE["spm without bytes"])
    ids = ids_of(tokenizer, "a中🦙b")
    assert [tokenizer.text_of(i) for i in ids] == ["<s>", "▁a", "<unk>", "<unk>", "b"]
    assert prompt_pieces(tokenizer, "a中🦙b", ids) == ["", "a", "中", "🦙", "b"]


def test_pieces_of_ids_are_what_they_decode_to(tokenizer):
    rng = random.Random(1)
    for _ in range(100):
        ids = [rng.randrange(tokenizer.n_vocab) for _ in range(rng.randrange(12))]
        pieces = id_pieces(tokenizer, ids)
        assert len(pieces) == len(ids) and "".join(pieces) == tokenizer.decode(ids, special=True)


class Scripted:
    """A sampler that gives these tokens."""

    cut = False

    def __init__(self, ids):
        self.ids = list(ids)

    def pick(self, logits):
        return self.ids.pop(0)

    def score(self, logits, token):
        return score(np.zeros(3), 0)


def answer(tokenizer, ids, stops, *, at_start=True):
    """The text of an answer of these tokens, its pieces, and its finish reason; each step as the server sees it."""
    stream, limit = tokenizer.stream(at_start=at_start), len(ids)
    run = Answer([[0]], Scripted(ids), stream, StopStrings(stops), tokenizer.end_ids, limit)
    pieces, text, found, reason = AnswerPieces(tokenizer, at_start=at_start), "", [], None
    while not run.done:
        step = run.take(np.zeros(1), 0.0)
        found += pieces.push(step)
        text += step.text
        assert text.startswith("".join(p.text for p in found)), "nothing is settled before it is shown"
        reason = step.finish_reason
    return text, found, reason


def check(tokenizer, ids, stops, at_start):
    text, pieces, reason = answer(tokenizer, ids, stops, at_start=at_start)
    assert "".join(p.text for p in pieces) == text
    if not stops or "\ufffd" not in tokenizer.decode(ids):  # no stop string within bytes that are no text
        assert b"".join(p.data for p in pieces).decode("utf-8", "replace") == text
    assert [p.token_id for p in pieces] == ids[: len(pieces)]
    ended = [p.ended for p in pieces]
    assert ended == sorted(ended) and (reason == "stop" or not any(ended)), "what ends an answer comes last"
    assert not any(p.text or p.data for p in pieces if p.ended)


@pytest.mark.parametrize("at_start", [True, False])
def test_an_answers_pieces_are_the_answer(tokenizer, at_start):
    rng = random.Random(2)
    words = [i for i in range(tokenizer.n_vocab) if tokenizer.token_bytes(i) in {c.encode() for c in ODD}]
    bytes_ = [i for i in range(tokenizer.n_vocab) if len(tokenizer.token_bytes(i)) == 1]
    for _ in range(400):
        pool = rng.choice([words, bytes_, range(tokenizer.n_vocab), tokenizer.encode(odd_text(rng)) or words])
        ids = [rng.choice(pool) for _ in range(rng.randrange(1, 12))]
        visible = tokenizer.decode(ids)
        start = rng.randrange(len(visible) + 1)
        cut = visible[start : start + rng.randrange(1, 5)]
        check(tokenizer, ids, rng.choice([[], [cut] if cut else [], ["\ufffd"], ["a", "ab b", cut or "x"]]), at_start)


def texts(pieces):
    return [(p.text, p.ended) for p in pieces]


def test_stop_strings_and_end_tokens(tmp_path):
    tokenizer = load(tmp_path, **MADE["spm"])
    a, b, ab, end = tokenizer.encode("a b ab", prefix=False)[0], 0, 0, 2
    b, ab = (tokenizer.vocabulary.ids[t] for t in ("b", "ab"))
    space_a = tokenizer.vocabulary.ids["▁a"]
    assert texts(answer(tokenizer, [space_a, b, end], [])[1]) == [("a", False), ("b", False), ("", True)]
    assert texts(answer(tokenizer, [space_a, b], [], at_start=False)[1]) == [(" a", False), ("b", False)]
    assert texts(answer(tokenizer, [b, ab, ab], ["ba"])[1]) == [("", True), ("", True)], "all of it is the stop string"
    assert texts(answer(tokenizer, [a, ab, ab], ["ba"])[1]) == [("a", False), ("a", False), ("", True)], "cut inside"
    assert texts(answer(tokenizer, [a, ab, b], ["bc"])[1]) == [("a", False), ("ab", False), ("b", False)], "no stop"


def test_bytes_of_a_character_that_is_cut_short_or_away(tmp_path):
    tokenizer = load(tmp_path, **MADE["spm"])
    lama = [8 + byte for byte in "🦙".encode()]
    _, pieces, _ = answer(tokenizer, [*lama, *lama[:2]], [])
    assert [p.text for p in pieces] == ["", "", "", "🦙", "", "\ufffd"]
    assert [p.data for p in pieces] == [bytes([i - 8]) for i in [*lama, *lama[:2]]]
    rest = answer(tokenizer, [lama[0], tokenizer.vocabulary.ids["b"], 2], [])[1]
    assert texts(rest) == [("", False), ("\ufffdb", False), ("", True)], "known to be no character one token later"
    text, pieces, _ = answer(tokenizer, [*lama, *lama], ["🦙"])
    assert text == "" and all(p.ended for p in pieces)


def test_a_token_that_goes_on_into_the_next_character(tmp_path):
    keys = bpe_keys(ggml_eos_token_id=261)
    keys["ggml_tokens"][256] = "a" + byte_letters()["é".encode()[0]]  # in the place of "ab"
    keys["ggml_merges"] = ["Ġ a"]
    tokenizer = load(tmp_path, **keys)
    assert tokenizer.token_bytes(256) == b"a\xc3"
    e = tokenizer.vocabulary.ids[byte_letters()["é".encode()[1]]]
    assert texts(answer(tokenizer, [256, e, 261], [])[1]) == [("a", False), ("é", False), ("", True)]
    assert texts(answer(tokenizer, [256, 261], [])[1]) == [("a\ufffd", False), ("", True)]


def test_control_tokens_in_an_answer_are_kept_and_add_nothing(tmp_path):
    tokenizer = load(tmp_path, **MADE["spm"])
    b = tokenizer.vocabulary.ids["b"]
    text, pieces, _ = answer(tokenizer, [b, 3, 0, b], [])
    assert text == "bb" and texts(pieces) == [("b", False), ("", False), ("", False), ("b", False)]
