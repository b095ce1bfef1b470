"""Test SPM: ids against SentencePiece and a slow definition; spaces, bytes, unknown characters."""

import random
from pathlib import Path

import pytest

from llava_ref.errors import PromptError
from llava_ref.tokenizer.spm import SpmMerger

from ..support.vocabularies import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER, load, odd_text, spm_keys, words


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    return load(tmp_path_factory.mktemp("spm"), **spm_keys())


def test_spm_gives_the_ids_of_sentencepiece(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece", reason="the training extra is not installed")
    corpus = Path(__file__).read_text().splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(tmp_path / "m"),
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.999,
        user_defined_symbols=["<sep>"],
        minloglevel=2,
    )
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    n = reference.get_piece_size()
    kinds = [
        (reference.is_unknown, UNKNOWN),
        (reference.is_control, CONTROL),
        (reference.is_byte, BYTE),
        (reference.is_unused, UNUSED),
    ]
    types = [next((kind for test, kind in kinds if test(i)), NORMAL) for i in range(n)]
    types[reference.piece_to_id("<sep>")] = USER
    tokenizer = load(
        tmp_path,
        ggml_model="llama",
        ggml_tokens=[reference.id_to_piece(i) for i in range(n)],
        ggml_scores=[reference.get_score(i) for i in range(n)],
        ggml_token_type=types,
    )
    rng = random.Random(3)
    texts = [line[:60] for line in corpus] + ["a" + odd_text(rng, 60) + "<sep>" + odd_text(rng) for _ in range(300)]
    wrong = [text for text in texts if tokenizer.encode(text, special=False) != reference.encode(text)]
    assert not wrong
    assert tokenizer.decode(reference.encode("the text <s>")) == reference.decode(reference.encode("the text <s>"))


def slow_merge(text: str, pieces: dict[str, int], scores: list[float]) -> list[str]:
    """Merge by definition: examine every pair after each merge."""
    merged = list(text)
    while True:
        pairs = [
            (-scores[pieces[a + b]], i)
            for i, (a, b) in enumerate(zip(merged, merged[1:], strict=False))
            if a + b in pieces
        ]
        if not pairs:
            return merged
        i = min(pairs)[1]
        merged[i : i + 2] = [merged[i] + merged[i + 1]]


def test_spm_merges_as_its_definition_does():
    rng = random.Random(4)
    for _ in range(300):
        texts = {"".join(rng.choice("abc") for _ in range(rng.randrange(1, 6))) for _ in range(30)} | set("abc")
        pieces = {text: i for i, text in enumerate(sorted(texts))}
        scores = [float(rng.randrange(5)) for _ in pieces]  # many equal scores
        text = "".join(rng.choice("abc") for _ in range(rng.randrange(1, 40)))
        ids = SpmMerger(pieces, scores, [None] * 256, 0)(text)
        assert ids == [pieces[piece] for piece in slow_merge(text, pieces, scores)]


def test_spm_examines_each_pair_only_a_few_times():
    lookups = 0

    class Counted(dict):
        def get(self, key, default=None):
            nonlocal lookups
            lookups += 1
            return super().get(key, default)

    pieces = Counted({"a" * (1 << i): i for i in range(12)})
    n = 20_001
    SpmMerger(pieces, [float(i) for i in range(12)], [None] * 256, 0)("a" * n)
    assert lookups < 4 * n


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("ab", {}, ["▁ab"]),
        ("ab", {"prefix": False}, ["ab"]),
        (" ab", {}, ["▁", "▁ab"]),
        ("", {}, []),
        ("", {"bos": True}, ["<s>"]),
        ("ab", {"bos": True}, ["<s>", "▁ab"]),
        ("ab<s>ab", {}, ["▁ab", "<s>", "ab"]),
        ("ab<s>ab", {"prefix_after_special": True}, ["▁ab", "<s>", "▁ab"]),
        ("<s>ab", {}, ["<s>", "ab"]),
        ("<s>ab", {"prefix_after_special": True}, ["<s>", "▁ab"]),
        ("ab<s>ab", {"prefix": False, "prefix_after_special": True}, ["ab", "<s>", "▁ab"]),
        ("helloab", {"prefix_after_special": True}, ["hello", "▁ab"]),
        ("</s>ab", {"special": False}, ["▁", "</", "s>", "ab"]),  # never merged to the control token
        ("é", {"prefix": False}, ["<0xC3>", "<0xA9>"]),
        ("\ud800", {"prefix": False}, ["<0xEF>", "<0xBF>", "<0xBD>"]),  # not text: U+FFFD
        ("<0x41>", {"prefix": False}, ["<", "<0x30>", "<0x78>", "<0x34>", "<0x31>", ">"]),
    ],
)
def test_spm_rules(spm, text, options, expected):
    assert words(spm, text, **options) == expected


def test_text_is_never_merged_to_a_byte_token(tmp_path):
    keys = spm_keys()
    steps = ["0", "x", "4", "1", "<0", "<0x", "<0x4", "<0x41"]
    keys["ggml_tokens"] += steps
    keys["ggml_scores"] += [0.0] * len(steps)
    keys["ggml_token_type"] += [NORMAL] * len(steps)
    assert words(load(tmp_path, **keys), "<0x41>", prefix=False) == ["<0x41", ">"]


def test_a_character_without_tokens_is_the_unknown_token_or_an_error(tmp_path):
    keys = {"ggml_model": "llama", "ggml_tokens": ["?", "<s>", "</s>", "a"], "ggml_scores": [0.0] * 4}
    types = [UNKNOWN, CONTROL, CONTROL, NORMAL]
    tokenizer = load(tmp_path, **keys, ggml_token_type=types, ggml_add_space_prefix=False)
    assert tokenizer.encode("aé") == [3, 0]
    without = SpmMerger({"a": 3}, [0.0] * 4, [None] * 256, None)
    with pytest.raises(PromptError, match="no token for 'é'"):
        without("é")
