"""Test prompts to chunks: space prefixes and BOS by profile, slots, and typed text that looks like them."""

from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from llava_ref.chat.chunks import ImageChunk, Prompt, TextChunk, chunks, raw
from llava_ref.chat.rendering import ChatTemplate, parse_messages, render_prompt
from llava_ref.chat.templates import TEMPLATES, VICUNA
from llava_ref.errors import PromptError
from llava_ref.gguf.file import read
from llava_ref.profiles import PROFILES, resolve
from llava_ref.tokenizer.quote import Quote
from llava_ref.tokenizer.tokenizer import Tokenizer

from ..support.tiny_pair import vocabulary

SHARED = Path(__file__).parents[3] / "shared" / "data" / "vocab" / "ggml-vocab-llama-spm.gguf"
PLAIN = Quote("", 0xE000)
BOS, EOS = "<s>", "</s>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Make an SPM vocabulary of letters and a few words."""
    path = tmp_path_factory.mktemp("vocabulary") / "v.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    tokens, scores, types = vocabulary()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return Tokenizer.from_gguf(read(path))


def cut(text, tokenizer, profile, quote=PLAIN):
    """Return the chunks of a prompt, with the texts of tokens and the numbers of slots."""
    prompt_chunks = chunks(Prompt(text, quote, ()), tokenizer, resolve(profile))
    return [
        c.index if isinstance(c, ImageChunk) else [tokenizer.text_of(i) for i in c.token_ids] for c in prompt_chunks
    ]


@pytest.mark.parametrize(
    "text, llava, hf, llama_cpp",
    [
        ("a", [[BOS, "▁a"]], [[BOS, "▁a"]], [[BOS, "▁a"]]),
        ("", [[BOS]], [[BOS]], [[BOS]]),
        ("a<image>b", [[BOS, "▁a"], 0, ["▁b"]], [[BOS, "▁a"], 0, ["b"]], [[BOS, "▁a"], 0, ["▁b"]]),
        ("<image>b", [[BOS], 0, ["▁b"]], [[BOS], 0, ["b"]], [[BOS], 0, ["▁b"]]),
        ("a<image>", [[BOS, "▁a"], 0], [[BOS, "▁a"], 0], [[BOS, "▁a"], 0]),
        ("<image><image>", [[BOS], 0, 1], [[BOS], 0, 1], [[BOS], 0, 1]),
        ("<image>\nb<image>c", [[BOS], 0, ["▁", "<0x0A>", "b"], 1, ["▁", "c"]],
         [[BOS], 0, ["<0x0A>", "b"], 1, ["c"]], [[BOS], 0, ["▁", "<0x0A>", "b"], 1, ["▁", "c"]]),
        (" a<image> a", [[BOS, "▁", "▁a"], 0, ["▁", "▁a"]], [[BOS, "▁a"], 0, ["▁a"]],
         [[BOS, "▁", "▁a"], 0, ["▁", "▁a"]]),
        ("a</s>b", [[BOS, "▁a", EOS, "b"]], [[BOS, "▁a", EOS, "b"]], [[BOS, "▁a", EOS, "▁b"]]),
        ("</s>b<image>", [[BOS, EOS, "b"], 0], [[BOS, EOS, "b"], 0], [[BOS, EOS, "▁b"], 0]),
        ("a<image></s>b", [[BOS, "▁a"], 0, [EOS, "b"]], [[BOS, "▁a"], 0, [EOS, "b"]],
         [[BOS, "▁a"], 0, [EOS, "▁b"]]),
        ("<s>b", [[BOS, "b"]], [[BOS, "b"]], [[BOS, "▁b"]]),  # a template's own BOS is not doubled
        ("<s><image>b", [[BOS], 0, ["▁b"]], [[BOS], 0, ["b"]], [[BOS], 0, ["▁b"]]),
        ("<image><s>", [[BOS], 0, [BOS]], [[BOS], 0, [BOS]], [[BOS], 0, [BOS]]),
    ],
)  # fmt: skip
def test_spaces_and_bos(tokenizer, text, llava, hf, llama_cpp):
    assert cut(text, tokenizer, "llava") == llava
    assert cut(text, tokenizer, "hf") == hf
    assert cut(text, tokenizer, "llama.cpp") == llama_cpp


@pytest.mark.parametrize("profile", PROFILES)
def test_no_bos_if_the_vocabulary_asks_for_none(tokenizer, profile):
    silent = Tokenizer(replace(tokenizer.vocabulary, add_bos=False))
    assert cut("<image>", silent, profile) == [0]
    assert cut("a<image>", silent, profile) == [["▁a"], 0]
    assert cut("", silent, profile) == []
    without = Tokenizer(replace(tokenizer.vocabulary, bos_id=None))
    assert cut("a", without, profile) == [["▁a"]]


@pytest.mark.parametrize("text", ["a", "a<image>", "<image>", "a<image>b"])
def test_eos_ends_a_prompt_if_the_profile_obeys_the_vocabulary(tokenizer, text):
    """Check EOS also after a picture. conformance/test_metadata_keys.py compares with llama.cpp and transformers."""
    asking = Tokenizer(replace(tokenizer.vocabulary, add_eos=True))
    for profile, ends in (("llava", False), ("hf", True), ("llama.cpp", True)):
        plain, ended = cut(text, tokenizer, profile), cut(text, asking, profile)
        more = [] if isinstance(plain[-1], int) else plain.pop()
        assert ended == [*plain, [*more, EOS]] if ends else [*plain, *([more] if more else [])] == ended


@pytest.mark.parametrize("profile", PROFILES)
def test_typed_tokens_stay_text(tokenizer, profile):
    """Try all places, also the very start: a typed BOS does not replace the real one."""
    quote = Quote.over([], tokenizer.control_texts)
    for typed in ("<s>", "</s>", "<image>", "<unk>", "<0x0A>"):
        text = f"{quote.quote(typed)}</s>{quote.quote('<im')}<image>{quote.quote('age>')}"
        before, slot, after = chunks(Prompt(text, quote, ()), tokenizer, resolve(profile))
        assert slot == ImageChunk(0)
        assert before.token_ids[0] == 1 and before.token_ids.count(1) == before.token_ids.count(2) == 1
        assert tokenizer.decode(before.token_ids).replace(" ", "") == f"{typed}<im"
        assert tokenizer.decode(after.token_ids).strip() == "age>"


@pytest.mark.parametrize("profile", PROFILES)
def test_a_conversation_all_the_way(tokenizer, profile):
    messages = parse_messages(
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": b"picture"}, {"type": "text", "text": "what </s>"}],
            },
            {"role": "assistant", "content": "red"},
            {"role": "user", "content": "is <image> blue"},
        ]
    )
    prompt = render_prompt(messages, ChatTemplate("vicuna", VICUNA, ""), tokenizer, image_order="first")
    prompt_chunks = chunks(prompt, tokenizer, resolve(profile))
    assert [type(c) for c in prompt_chunks] == [TextChunk, ImageChunk, TextChunk]
    ids = [i for c in prompt_chunks if isinstance(c, TextChunk) for i in c.token_ids]
    assert ids[0] == tokenizer.bos_id and ids.count(tokenizer.bos_id) == 1
    assert ids.count(tokenizer.eos_id) == 1  # the template's, after the answer; the typed one is text
    assert prompt.shown == "USER: <image>\nwhat </s> ASSISTANT: red</s>USER: is <image> blue ASSISTANT:"


def test_raw_prompts(tokenizer):
    prompt = raw("<s>a<image></s>", 1, tokenizer)
    assert prompt.shown == prompt.text == "<s>a<image></s>" and prompt.images == ()
    assert chunks(prompt, tokenizer, resolve("llava")) == [
        TextChunk((1, *tokenizer.encode("a", prefix=False))),
        ImageChunk(0),
        TextChunk((2,)),
    ]
    private = "\ue000\uf8ff\U00100000"
    assert chunks(raw(private, 0, tokenizer), tokenizer, resolve("llava"))[0].token_ids[1:] == tuple(
        tokenizer.encode(private)
    )


@pytest.mark.parametrize(
    "text, n_images, problem",
    [
        ("a", 1, "0 in the prompt for 1"),
        ("<image>", 0, "1 in the prompt for 0"),
        ("<image>" * 2, 3, "2 in the prompt for 3"),
    ],
)
def test_raw_prompts_need_a_slot_for_each_picture(tokenizer, text, n_images, problem):
    with pytest.raises(PromptError, match=f"prompt: <image>: {problem} images, expected one for each"):
        raw(text, n_images, tokenizer)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared Llama vocabulary is not here")
@pytest.mark.parametrize(
    "text, hf, others",
    [
        ("USER: <image>\nWhat? ASSISTANT:",
         [[3148, 1001, 29901, 29871], [13, 5618, 29973, 319, 1799, 9047, 13566, 29901]],
         [[3148, 1001, 29901, 29871], [29871, 13, 5618, 29973, 319, 1799, 9047, 13566, 29901]]),
        ("<image>What", [[], [5618]], [[], [1724]]),
        ("hi <image> there", [[7251, 29871], [727]], [[7251, 29871], [29871, 727]]),
        ("a</s>USER: x", [[263, 2, 11889, 29901, 921]], [[263, 2, 11889, 29901, 921]]),
    ],
)  # fmt: skip
def test_token_ids_of_llava(text, hf, others):
    """Compare with known ids. `hf`: transformers 5.23, LlamaTokenizer with `<image>` as an added special token."""
    tokenizer = Tokenizer.from_gguf(read(SHARED))
    prompt = raw(text, text.count("<image>"), tokenizer)
    for profile, want in (("hf", hf), ("llava", others)):
        texts = [c for c in chunks(prompt, tokenizer, resolve(profile)) if isinstance(c, TextChunk)]
        assert [list(c.token_ids) for c in texts] == [[1, *want[0]], *want[1:]]


def test_no_user_can_write_a_marker_of_a_picture(tokenizer):
    """Markers are user-defined tokens in released Gemma 3 files, which plain text would become."""
    messages = parse_messages([{"role": "user", "content": "a <start_of_image> b <end_of_image>"}])
    prompt = render_prompt(messages, ChatTemplate("gemma", TEMPLATES["gemma"], ""), tokenizer, image_order="template")
    assert "<start_of_image>" not in prompt.text and "<end_of_image>" not in prompt.text
    assert "<start_of_image> b <end_of_image>" in prompt.shown
