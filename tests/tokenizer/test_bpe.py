"""Test byte-pair encoding: the cuts, and the merges against a slow definition."""

import json
import random
from pathlib import Path

import pytest

from llava_ref.tokenizer.bpe import BpeMerger, byte_letters
from llava_ref.tokenizer.pretokenizers import PRES

from ..support.vocabularies import BYTE, BYTES, CONTROL, NORMAL, bpe_keys, load, odd_text, words


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return load(tmp_path_factory.mktemp("bpe"), **bpe_keys())


def slow_bpe(text: str, pieces: dict[str, int], merges: list[tuple[str, str]]) -> list[int]:
    """Merge by definition: examine every pair after each merge. Spell unknown texts, drop unknown letters."""
    rank = {pair: i for i, pair in reversed(list(enumerate(merges)))}
    merged = list(text)
    while pairs := [(rank[pair], i) for i, pair in enumerate(zip(merged, merged[1:], strict=False)) if pair in rank]:
        i = min(pairs)[1]
        merged[i : i + 2] = [merged[i] + merged[i + 1]]
    return [pieces[p] for text in merged for p in ([text] if text in pieces else text) if p in pieces]


def test_bpe_merges_as_its_definition_does():
    """Try random merges: repeated, out of order, of and to texts that are not tokens."""
    rng = random.Random(5)
    for _ in range(150):
        texts = ["a", "b", "c"] + sorted(
            {"".join(rng.choice("abcd") for _ in range(rng.randrange(2, 5))) for _ in range(15)}
        )
        pieces = {text: i for i, text in enumerate(texts)}
        merges = [
            (t[:cut], t[cut:])
            for t in (*texts[3:], "cd", "dab", "ca", "bb", "acb")
            for cut in range(1, len(t))
            if rng.random() < 0.7
        ]
        rng.shuffle(merges)
        merger = BpeMerger(pieces, len(pieces), dict.fromkeys(merges), set(), PRES["gpt-2"])
        for _ in range(10):
            text = "".join(rng.choice("abcd") for _ in range(rng.randrange(1, 25)))
            assert merger(text) == slow_bpe(text, pieces, merges)


MIXED = "I'LL say helloWorld, HTTPServer 1234567!?\n\n  x=='y'  \t日本語ABC été१२३४ नमस्ते\u3000\u00a0end  "


def cuts(name: str, text: str) -> str:
    pre = PRES[name]
    merger = BpeMerger({}, 0, [], set(), pre)
    letters = {letter: b for b, letter in enumerate(byte_letters())}
    pieces = [piece for piece, _ in merger.library.pre_tokenizer.pre_tokenize_str(text)]
    return "|".join(bytes(letters[c] for c in p).decode() if pre.byte_level else p for p in pieces)


CUTS = json.loads((Path(__file__).parent / "pretokenizer_cuts.json").read_text())["cuts"]


@pytest.mark.parametrize("name", CUTS)
def test_cuts(name):
    """Compare with llama.cpp's cuts. The ids agree with its own on thousands of random texts (see conformance)."""
    assert cuts(name, MIXED) == CUTS[name]


@pytest.mark.parametrize("name", PRES)
def test_cuts_lose_no_text(name):
    rng = random.Random(6)
    for text in (MIXED, *(odd_text(rng, 60) for _ in range(20))):
        assert cuts(name, text).replace("|", "") == text.replace("|", "")


@pytest.mark.parametrize("name", ["superbpe", "afmoe", "tiny_aya", "deepseek-llm", "jais-2"])
def test_long_runs_take_linear_time(name):
    """Cut long runs. A regex that scans the rest of a run from each of its characters would take minutes."""
    for run in ("7" * 100_000, " " * 100_000 + "x", " 7" * 20_000):
        assert len(cuts(name, run)) >= len(run)


def test_bpe_rules(bpe, tmp_path):
    assert words(bpe, "abab ab") == ["abab", "Ġab"]
    assert words(bpe, "<|im_start|>ab<think>  ") == ["<|im_start|>", "ab", "<think>", "  "]
    assert words(bpe, "ab<think>", special=False) == ["ab", "<think>"]  # user-defined tokens always count as such
    assert len(bpe.encode("<|im_start|>", special=False)) == len("<|im_start|>")
    assert bpe.decode(bpe.encode(MIXED)) == MIXED
    assert not bpe.add_bos
    assert not bpe.notes


def test_a_merge_to_a_control_token_is_left_out(tmp_path):
    keys = bpe_keys()
    types = [*keys["ggml_token_type"][:256], CONTROL, *keys["ggml_token_type"][257:]]
    texts = [*keys["ggml_tokens"][:257], "ba", *keys["ggml_tokens"][258:]]
    merges = {"ggml_merges": ["a b", "b a"]}
    tokenizer = load(tmp_path, **keys | merges | {"ggml_token_type": types, "ggml_tokens": texts})
    assert words(tokenizer, "abab", special=False) == ["a", "ba", "b"]
    assert words(tokenizer, "abab") == ["ab", "ab"]


def test_plain_character_bpe_with_byte_fallback(tmp_path):
    texts = ["<pad>", "<eos>", "<bos>", "▁", "a", "b", "ab", "▁ab", "\n", "\n\n", *BYTES]
    types = [CONTROL] * 3 + [NORMAL] * 7 + [BYTE] * 256
    tokenizer = load(
        tmp_path,
        ggml_model="gpt2",
        ggml_pre="gemma4",
        ggml_tokens=texts,
        ggml_token_type=types,
        ggml_merges=["a b", "▁ ab"],
        ggml_bos_token_id=2,
        ggml_add_bos_token=False,
    )
    assert words(tokenizer, "ab ab\n\nab\n\n\né") == ["ab", "▁ab", "\n\n", "ab", "\n", "\n", "\n", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("ab ab\n\né 中")) == "ab ab\n\né 中"
    assert tokenizer.add_bos  # this family starts with BOS even if the file says otherwise


def test_a_missing_pre_is_the_default_with_a_note(tmp_path):
    keys = bpe_keys()
    del keys["ggml_pre"]
    (note,) = load(tmp_path, **keys).notes
    assert "tokenizer.ggml.pre is missing" in note


def test_a_missing_byte_is_noted_and_left_out(tmp_path):
    keys = bpe_keys()
    keys["ggml_tokens"][byte_letters().index("z")] = "zz"
    tokenizer = load(tmp_path, **keys)
    assert tokenizer.notes == ("1 of 256 bytes have no token: text loses them",)
    assert tokenizer.decode(tokenizer.encode("azb")) == "ab"
