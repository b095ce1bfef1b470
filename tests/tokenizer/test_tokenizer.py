"""Test token ids against llama.cpp's own test pairs; special tokens, users' text, decoding and streaming."""

import random
import tracemalloc
from pathlib import Path

import pytest

from llava_ref import gguf
from llava_ref.errors import ParameterError, PromptError
from llava_ref.tokenizer.bpe import byte_letters
from llava_ref.tokenizer.quote import Quote
from llava_ref.tokenizer.spm import SPACE
from llava_ref.tokenizer.tokenizer import MAX_CHARACTERS, Tokenizer

from ..support.vocabularies import CONTROL, NORMAL, UNUSED, bpe_keys, load, odd_text, spm_keys, words

VOCAB = Path(__file__).parents[3] / "shared" / "data" / "vocab"


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    return load(tmp_path_factory.mktemp("spm"), **spm_keys())


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return load(tmp_path_factory.mktemp("bpe"), **bpe_keys())


# llama.cpp's test pairs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama-spm", "phi-3", "llama-bpe", "qwen2"])
def real(request):
    file = VOCAB / f"ggml-vocab-{request.param}.gguf"
    if not file.exists():
        pytest.skip("the shared vocabularies are not beside the repository")
    strings = file.with_name(f"{file.name}.inp").read_text().split("\n__ggml_vocab_test__\n")
    lines = file.with_name(f"{file.name}.out").read_text().split("\n")
    pairs = [(text, [int(i) for i in line.split()]) for text, line in zip(strings, lines, strict=True)]
    return Tokenizer.from_gguf(gguf.read(file)), pairs


def test_llama_cpp_pairs(real):
    tokenizer, pairs = real
    wrong = {text: ids for text, ids in pairs if tokenizer.encode(text, special=False) != ids}
    assert len(pairs) == 47
    assert not wrong


def test_llama_cpp_pairs_decode_to_their_text(real):
    tokenizer, pairs = real
    assert [tokenizer.decode(ids) for _, ids in pairs] == [text for text, _ in pairs]


def test_every_token_decodes_alone_and_streamed(real):
    tokenizer, _ = real
    rng = random.Random(1)
    for _ in range(50):
        ids = [rng.randrange(tokenizer.n_vocab) for _ in range(40)]
        for special in (False, True):
            stream = tokenizer.stream(special=special)
            pieces = [stream.push(i) for i in ids] + [stream.flush()]
            hidden = () if special else tokenizer.vocabulary.control
            data = b"".join(tokenizer.token_bytes(i) for i in ids if i not in hidden)
            data = data.removeprefix(b" ") if tokenizer.vocabulary.add_space_prefix else data
            assert "".join(pieces) == tokenizer.decode(ids, special=special) == data.decode(errors="replace")


def test_no_text_of_a_user_becomes_a_control_token(real):
    """Encode texts of control tokens that users typed, whole and cut, between control tokens of a template."""
    tokenizer, _ = real
    v, rng = tokenizer.vocabulary, random.Random(2)
    words = [*tokenizer.control_texts, "<image>", "<|", "|>", " ", "\n", "Hello", "</", "s>", "é"]
    for _ in range(60):
        users = ["".join(rng.choice(words) for _ in range(rng.randrange(1, 6))) for _ in range(3)]
        marks = [rng.choice(tokenizer.control_texts) for _ in range(4)]
        quote = Quote.over(users, tokenizer.control_texts)
        prompt = marks[0] + "".join(quote.quote(user) + mark for user, mark in zip(users, marks[1:], strict=True))
        ids = tokenizer.encode(prompt, quote=quote)
        assert [v.texts[i] for i in ids if i in v.control] == marks
        if not v.strip_right:
            text = marks[0] + "".join(user + mark for user, mark in zip(users, marks[1:], strict=True))
            assert tokenizer.decode(ids, special=True) == text


def slow_partition(text: str, specials: list[tuple[str, int]]) -> list[str | int]:
    """Cut tokens out of the text by definition: one after the other, longest first, out of the runs still left."""
    runs: list[str | int] = [text]
    for word, i in sorted(specials, key=lambda s: (-len(s[0].encode()), s[1])):
        split = [r for run in runs for r in ([run] if isinstance(run, int) else runs_around(run, word, i))]
        runs = [run for run in split if run != ""]
    return runs


def runs_around(text: str, word: str, i: int) -> list[str | int]:
    return [run for between in text.split(word) for run in (between, i)][:-1]


def test_special_tokens_are_cut_out_longest_first(tmp_path):
    specials = ["ab", "aba", "bab", "<a", "a>", "aa", "é<"]
    keys = bpe_keys(ggml_merges=["c d"])
    keys["ggml_tokens"] = byte_letters() + specials
    keys["ggml_token_type"] = [NORMAL] * 256 + [CONTROL] * len(specials)
    tokenizer = load(tmp_path, **keys)
    places = [(text, 256 + i) for i, text in enumerate(specials)]
    rng = random.Random(7)
    for _ in range(400):
        text = "".join(rng.choice("aabb<>é ") for _ in range(rng.randrange(20)))
        runs = slow_partition(text, places)
        expected = [i for p in runs for i in ([p] if isinstance(p, int) else tokenizer.encode(p, special=False))]
        assert tokenizer.encode(text) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Phi-3 mini", ["▁a", "<|user|>", "b", "<s>", "▁", "b"]),
        ("Mistral", ["▁a", "<|user|>", "▁", "<0x0A>", "b", "<s>", "▁", "b"]),
    ],
)
def test_special_tokens_strip_blanks_by_model(tmp_path, name, expected):
    assert words(load(tmp_path, **spm_keys(general_name=name)), "a<|user|> \nb<s> b") == expected


def test_a_mask_token_strips_blanks_before_it(tmp_path):
    keys = bpe_keys(ggml_pre="jina-v2-de")
    keys["ggml_tokens"][260] = "<mask>"
    assert words(load(tmp_path, **keys), "ab \n<mask> ab") == ["ab", "<mask>", "Ġab"]


def test_quoted_text_is_read_as_plain_text(spm):
    user = "<s>ab</s><|im|>hello"
    quote = Quote.over([user], spm.control_texts)
    ids = spm.encode(f"<|user|>{quote.quote(user)}</s>", quote=quote)
    assert [i for i in ids if i in spm.vocabulary.control] == [3, 2]
    assert spm.text_of(ids[-2]) == "hello"  # a user-defined token is found in users' text too
    assert spm.decode(ids, special=True) == f"<|user|>{user}</s>"


def test_a_users_letters_do_not_complete_a_templates_token(spm):
    quote = Quote.over(["user"], spm.control_texts)
    assert spm.encode("<|user|>") == [3]
    assert not set(spm.encode(f"<|{quote.quote('user')}|>", quote=quote)) & spm.vocabulary.control


def test_decoding_rules(spm, tmp_path):
    ids = spm.encode("ab ab", bos=True)
    assert spm.decode(ids) == "ab ab"
    assert spm.decode(ids, special=True) == "<s> ab ab"
    assert spm.token_bytes(3) == b"<|user|>"
    keys = spm_keys(ggml_add_space_prefix=False)
    keys["ggml_token_type"][-1] = UNUSED
    plain = load(tmp_path, **keys)
    assert plain.decode(plain.encode(" ab")) == " ab"
    assert plain.token_bytes(plain.n_vocab - 1) == b""
    keys["ggml_add_space_prefix"] = True
    spaced = load(tmp_path, **keys)
    assert spaced.decode([spaced.n_vocab - 1, *spaced.encode("ab")]) == "ab"  # the first token that adds text


def test_a_stream_never_splits_a_character(spm):
    stream = spm.stream()
    ids = spm.encode("é🦙b", prefix=False)
    assert [stream.push(i) for i in ids] == ["", "é", "", "", "", "🦙", "b"]
    assert stream.flush() == ""
    stream = spm.stream()
    assert [stream.push(i) for i in (264 - 256 + 0xF0, 264 - 256 + 0x9F)] == ["", ""]
    assert stream.flush() == "\ufffd"


def test_a_stream_decodes_any_bytes_as_python_does(spm):
    rng = random.Random(8)
    for _ in range(500):
        data = bytes(
            rng.choice([0x41, 0x80, 0xBF, 0xC2, 0xE2, 0xED, 0xA0, 0xF0, 0xF4, 0x90, 0xFF])
            for _ in range(rng.randrange(9))
        )
        stream = spm.stream()
        text = "".join([*(stream.push(8 + b) for b in data), stream.flush()])
        assert text == data.decode(errors="replace")


def test_decoding_inverts_encoding(spm, bpe):
    rng = random.Random(9)
    for _ in range(200):
        text = odd_text(rng).replace(SPACE, "")
        assert spm.decode(spm.encode(text, special=False)) == text
        assert bpe.decode(bpe.encode(text, special=False)) == text


@pytest.mark.parametrize("token", [-1, 10_000])
def test_ids_out_of_range(spm, token):
    for call in (spm.text_of, spm.token_bytes, lambda i: spm.decode([i])):
        with pytest.raises(ParameterError, match="expected a number from 0 to"):
            call(token)


def test_a_text_beyond_the_limit_is_refused_at_once(bpe):
    tracemalloc.start()
    text = " " * (MAX_CHARACTERS + 1)
    before = tracemalloc.get_traced_memory()[0]
    with pytest.raises(PromptError, match="2,000,001 characters, expected at most 2,000,000"):
        bpe.encode(text)
    assert tracemalloc.get_traced_memory()[1] - before < 100_000
    tracemalloc.stop()
