"""Test marked text: it equals the result of str, and no character gets the mark of another text."""

import unicodedata

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_ref.chat import sandbox
from llava_ref.chat.chunks import ImageChunk, TextChunk, chunks
from llava_ref.chat.messages import ImagePart, Message, TextPart
from llava_ref.chat.rendering import ChatTemplate, render_prompt
from llava_ref.chat.sandboxed.child import pack, runs, unpack
from llava_ref.chat.sandboxed.marked import (
    FIRST,
    TEMPLATE,
    UNKNOWN,
    Marked,
    Untracked,
    joined,
    marks_of,
    plain,
    tainted,
)
from llava_ref.errors import LlavaError
from llava_ref.gguf.file import read
from llava_ref.profiles import PROFILES
from llava_ref.tokenizer.tokenizer import Tokenizer

from ..support.template_grammar import FOLLOWED, TEXTS, UNFOLLOWED, operations, templates
from ..support.tiny_pair import vocabulary

A, B = chr(FIRST), chr(FIRST + 1)
PROPERTY = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def typed(text, mark=A):
    """Mark a text as that of a user."""
    return Marked(text, mark * len(text))


def numbered(text):
    """Give each character a mark of its own, which is its index."""
    return Marked(text, "".join(chr(FIRST + i) for i in range(len(text))))


CALLS = [
    ("strip", ()), ("strip", ("aH",)), ("lstrip", ()), ("rstrip", (".",)), ("split", ()), ("split", (" ",)),
    ("split", ("l", 1)), ("split", (None, 1)), ("rsplit", ("l", 1)), ("rsplit", (None, 1)), ("splitlines", ()),
    ("splitlines", (True,)), ("partition", (" ",)), ("partition", ("zz",)), ("rpartition", (" ",)),
    ("rpartition", ("zz",)), ("removeprefix", ("H",)), ("removesuffix", (".",)), ("replace", ("l", "")),
    ("replace", ("o", "", 1)),
]  # fmt: skip


@pytest.mark.parametrize("name, args", CALLS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_remaining_characters_keep_their_marks(text, name, args):
    """Call each method that only removes characters: the others must be those that their marks name."""
    result, want = getattr(numbered(text), name)(*args), getattr(text, name)(*args)
    assert result == want and type(result) is type(want) or isinstance(result, Marked)
    texts = [result] if isinstance(result, str) else result
    origins = [ord(mark) - FIRST for x in texts for mark in marks_of(x)]
    assert "".join(text[i] for i in origins) == "".join(want) and origins == sorted(set(origins))


CASES = ("upper", "lower", "title", "capitalize", "swapcase", "casefold")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("text", TEXTS)
def test_letters_keep_their_marks_in_another_case(text, name):
    got = getattr(numbered(text), name)()
    assert got == getattr(text, name)() and len(marks_of(got)) == len(got)
    if UNKNOWN not in marks_of(got):
        for c, mark in zip(plain(got), marks_of(got), strict=True):
            assert c.casefold() in text[ord(mark) - FIRST].casefold() or c in text[ord(mark) - FIRST].title()
    assert UNKNOWN not in marks_of(getattr(numbered("Straße ß ŉ"), name)()) or name in ("title", "swapcase")


MADE = [
        (typed("ab") + "c" + typed("d", B), "abcd", A + A + TEMPLATE + B),
        ("c" + typed("ab"), "cab", TEMPLATE + A + A),
        (2 * typed("ab"), "abab", A * 4),
        (typed("ab").center(7, "*"), "***ab**", TEMPLATE * 3 + A * 2 + TEMPLATE * 2),
        (typed("ab").rjust(4), "  ab", TEMPLATE * 2 + A * 2),
        (typed("-5").zfill(5), "-0005", A + TEMPLATE * 3 + A),
        (typed("a\tb").expandtabs(4), "a   b", A + TEMPLATE * 3 + A),
        (typed(", ", B).join([typed("a"), "c"]), "a, c", A + B * 2 + TEMPLATE),
        (typed("aXb").replace("X", typed("yz", B)), "ayzb", A + B * 2 + A),
        (typed("ab").replace("", "-"), "-a-b-", TEMPLATE + A + TEMPLATE + A + TEMPLATE),
        (typed("ab").replace("", "-", 1), "-ab", TEMPLATE + A + A),
        (format(typed("abc"), "*^7.2"), "**ab***", TEMPLATE * 2 + A * 2 + TEMPLATE * 3),
        (typed("ab").translate({97: "x"}), "xb", UNKNOWN * 2),
        (typed("%s") % "x", "x", UNKNOWN),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(MADE)))
def test_joined_texts_keep_their_marks(number):
    made, text, marks = MADE[number]
    assert made == text and marks_of(made) == marks


def test_every_method_of_str_keeps_marks_or_gives_unknown_origin():
    """Call all methods of str, also those that a later Python adds: no result may count as the template's own."""
    arguments = {
        "join": (["a", "b"],),
        "replace": ("a", "b"),
        "translate": ({},),
        "partition": ("b",),
        "rpartition": ("b",),
    }
    arguments |= dict.fromkeys(("center", "ljust", "rjust", "zfill"), (9,))
    arguments |= dict.fromkeys(("removeprefix", "removesuffix", "count", "find", "index", "rfind", "rindex"), ("b",))
    arguments |= dict.fromkeys(("startswith", "endswith"), ("b",))
    for name in [name for name in dir(str) if not name.startswith("_")]:
        if name in ("maketrans", "format", "format_map"):  # `formatting` replaces these
            continue
        try:
            result = getattr(typed("a b"), name)(*arguments.get(name, ()))
        except Untracked:
            assert name == "encode"
            continue
        texts = [result] if isinstance(result, str) else result if isinstance(result, list | tuple) else []
        assert all(tainted(text) for text in texts if text.strip("0 ")), name
        assert texts or isinstance(result, bool | int), name


def test_marks_survive_packing():
    text = joined((typed("a\ud800é"), "b", typed("\0", B)))
    assert runs(text) == [(3, FIRST), (1, 0), (1, FIRST + 1)]
    again = unpack(pack(text))
    assert again == text and marks_of(again) == marks_of(text)
    assert unpack({"marked": 1, "other": 2}) == {"marked": 1, "other": 2}


def test_marks_of_another_length_are_refused():
    with pytest.raises(Untracked):
        Marked("ab", A)


@pytest.fixture
def in_this_process(monkeypatch):
    """Render in this process: a child for each of hundreds of templates would take long."""
    monkeypatch.setattr(sandbox, "run", lambda source, contexts, where, field: sandbox.run_trusted(source, contexts))


def owner(c):
    """Return the mark a letter must have: Cyrillic is the first text's, Greek the second's, p and q the template's."""
    name = unicodedata.name(c, "")
    return A if name.startswith("CYRILLIC") else B if name.startswith("GREEK") else TEMPLATE if c in "pqPQ" else None


def letters(alphabet):
    return st.text(alphabet + alphabet.upper() + " \t\n.-({[<'\"&", min_size=1, max_size=30)


@PROPERTY
@given(templates(operations(FOLLOWED) + operations(UNFOLLOWED)), letters("абвгдежзи"), letters("βγδεζηικλ"))
def test_no_character_gets_the_mark_of_another_text(source, first, second):
    """Try random templates. Escapes (`tojson`, `escape`) have letters of the template's alphabet under users' marks."""
    messages = [{"role": "user", "content": typed(first, A)}, {"role": "user", "content": typed(second, B)}]
    (rendering,) = sandbox.run_trusted(source, [{"messages": messages}])
    for c, mark in zip(plain(rendering.text or ""), marks_of(rendering.text or ""), strict=True):
        own = owner(c)
        assert own is None or mark in (own, UNKNOWN) or own == TEMPLATE and ("tojson" in source or "e" in source)


CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|a|>", "[INST]"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Make an SPM vocabulary with control tokens."""
    path = tmp_path_factory.mktemp("vocabulary") / "v.gguf"
    tokens, scores, types = vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*tokens, *CONTROL[2:]])
    writer.add_token_scores([*scores, *[0.0] * len(CONTROL[2:])])
    writer.add_token_types([*types, *[3] * len(CONTROL[2:])])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return Tokenizer.from_gguf(read(path))


hostile = st.lists(
    st.sampled_from([*CONTROL, "<image>", "<|", "|>", "im_end", "<", ">", "/", "s", "a", " ", "\ue000", "\n"]),
    min_size=1,
    max_size=8,
)


@PROPERTY
@given(templates(operations(FOLLOWED) + operations(UNFOLLOWED)), hostile, hostile, st.sampled_from(sorted(PROFILES)))
def test_typed_text_is_never_a_control_token_or_a_slot(in_this_process, tokenizer, source, first, second, profile):
    """Check that only the <|ROLE|> before each message and the <|a|> at the end, which the template writes, count."""
    quirks = PROFILES[profile]
    messages = [
        Message("user", (TextPart("".join(first)),)),
        Message("user", (ImagePart(b""), TextPart("".join(second)))),
    ]
    with_slot = source.replace("{{ m.role }}|>", "{{ m.role }}|>{{ '<image>' if m.content is not string }}")
    for talk, slots in ((messages[:1], 0), (messages, 1)):
        try:
            prompt = render_prompt(talk, ChatTemplate("file", with_slot, ""), tokenizer, image_order=quirks.image_order)
        except LlavaError:
            continue
        prompt_chunks = chunks(prompt, tokenizer, quirks)
        ids = [i for c in prompt_chunks if isinstance(c, TextChunk) for i in c.token_ids]
        assert sum(isinstance(c, ImageChunk) for c in prompt_chunks) == slots
        control = [tokenizer.text_of(i) for i in ids if i in tokenizer.vocabulary.control]
        assert control == ["<s>", *["<|user|>"] * len(talk), "<|a|>"]
