"""Test reading the `tokenizer.ggml.*` keys, and the errors for malformed ones."""

import pytest

from llava_ref.errors import GGUFError

from ..support.vocabularies import BYTE, NORMAL, bpe_keys, load, spm_keys, words

END_CASES = [
    ({}, {2}),
    ({"ggml_eos_token_id": 5}, {2, 5}),  # </s> is found by its text
    ({"ggml_eot_token_id": 3, "ggml_eom_token_id": 5}, {2, 3, 5}),
    ({"ggml_eos_token_id": 99_999}, {2}),  # out of range: the default stays
    ({"ggml_fim_pad_token_id": 4, "ggml_fim_rep_token_id": 5, "ggml_fim_pre_token_id": 3}, {2, 4, 5}),
]


@pytest.mark.parametrize(("changes", "expected"), END_CASES)
def test_end_of_generation(tmp_path, changes, expected):
    assert load(tmp_path, **spm_keys(**changes)).end_ids == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["<|im_end|>", "<|end|>", "[PAD]"], {"<|im_end|>", "<|end|>", "[PAD]"}),
        (["<|end|>", "<|return|>", "<|call|>"], {"<|return|>", "<|call|>"}),
        (["<|end|>", "<|flush|>", "<|calls|>"], {"<|flush|>", "<|calls|>"}),
        (["<|end|>", "<|return|>"], {"<|end|>", "<|return|>"}),
        (["</s>", "<|tool_response>", "<turn|>"], {"<|tool_response>", "<turn|>"}),
        (["<｜end▁of▁sentence｜>", "<|file_sep|>", "<PRE>"], {"<｜end▁of▁sentence｜>", "<|file_sep|>"}),
    ],
)
def test_end_of_generation_by_text(tmp_path, names, expected):
    """Check that normal tokens with the text of an end token count as control tokens."""
    keys = spm_keys()
    keys["ggml_tokens"] = [f"<x{i}>" if t == "</s>" else t for i, t in enumerate(keys["ggml_tokens"])] + names
    keys["ggml_scores"] += [0.0] * len(names)
    keys["ggml_token_type"] += [NORMAL] * len(names)
    tokenizer = load(tmp_path, **keys, ggml_eos_token_id=2)
    end_texts = {tokenizer.text_of(i) for i in tokenizer.end_ids}
    assert end_texts == expected | {"<x2>"}
    assert expected <= set(tokenizer.control_texts)
    assert ("<PRE>" in tokenizer.control_texts) == ("<PRE>" in names)


def test_special_ids(tmp_path):
    bpe = load(tmp_path, **bpe_keys())
    tokenizer = load(tmp_path, **spm_keys(ggml_bos_token_id=4_000_000_000, ggml_unknown_token_id=3))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocabulary.unknown_id) == (1, 2, 3)
    assert tokenizer.notes == ("tokenizer.ggml.bos_token_id is 4000000000, not a token of this vocabulary: ignored",)
    assert (bpe.bos_id, bpe.eos_id, bpe.vocabulary.unknown_id) == (11, 11, None)  # llama.cpp's defaults
    assert load(tmp_path, **bpe_keys(ggml_pre="glm4")).bos_id is None


def test_begin_and_end_rules(tmp_path):
    assert load(tmp_path, **bpe_keys(ggml_pre="llama-bpe")).add_bos
    assert not load(tmp_path, **bpe_keys(ggml_pre="llama-bpe", ggml_add_bos_token=False)).add_bos
    tokenizer = load(tmp_path, **spm_keys(ggml_add_bos_token=False, ggml_add_eos_token=True))
    assert not tokenizer.add_bos
    assert tokenizer.add_eos
    assert tokenizer.encode("ab", bos=True) == tokenizer.encode("ab")


SPM_FAULTS = [
    ({"ggml_model": "bert"}, "tokenizer.ggml.model: is 'bert'"),
    ({"ggml_model": None}, "tokenizer.ggml.model: missing"),
    ({"ggml_model": 3}, "tokenizer.ggml.model: is u32"),
    ({"ggml_tokens": None}, "tokenizer.ggml.tokens: missing"),
    ({"ggml_tokens": [1, 2]}, r"tokenizer.ggml.tokens: is array\[i32\], expected an array of strings"),
    ({"ggml_tokens": ["a", "b", "a"]}, "tokens 0 and 2 are both 'a'"),
    ({"ggml_scores": None}, "tokenizer.ggml.scores: missing"),
    ({"ggml_scores": [0.0, 1.0]}, "tokenizer.ggml.scores: has 2 entries, expected 281"),
    ({"ggml_scores": ["0"] * 281}, r"tokenizer.ggml.scores: is array\[string\]"),
    ({"ggml_scores": [float("nan")] * 281}, "tokenizer.ggml.scores: element 0 is nan"),
    ({"ggml_token_type": [1, 2]}, "tokenizer.ggml.token_type: has 2 entries, expected 281"),
    ({"ggml_token_type": [0.5] * 281}, r"tokenizer.ggml.token_type: is array\[f32\]"),
    ({"ggml_token_type": [BYTE] * 281}, "token 0 has type byte and text '<unk>'"),
    ({"ggml_bos_token_id": "1"}, "tokenizer.ggml.bos_token_id: is string"),
    ({"ggml_add_bos_token": 1}, "tokenizer.ggml.add_bos_token: is u32, expected bool"),
]
BPE_FAULTS = [
    ({"ggml_merges": None}, "tokenizer.ggml.merges: missing"),
    ({"ggml_merges": ["ab"]}, "tokenizer.ggml.merges: holds 'ab', expected two texts"),
    ({"ggml_merges": ["a "]}, "tokenizer.ggml.merges: holds 'a '"),
    ({"ggml_merges": [1, 2]}, r"tokenizer.ggml.merges: is array\[i32\]"),
    ({"ggml_pre": "llama-9"}, "tokenizer.ggml.pre: unknown pre-tokenizer 'llama-9'"),
    ({"ggml_tokens": ["a"], "ggml_pre": "llama-bpe"}, "tokenizer.ggml.bos_token_id: texts start with BOS"),
]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [(spm_keys(**changes), problem) for changes, problem in SPM_FAULTS]
    + [(bpe_keys(**changes), problem) for changes, problem in BPE_FAULTS],
)
def test_an_error_names_the_malformed_key(tmp_path, keys, problem):
    with pytest.raises(GGUFError, match=problem):
        load(tmp_path, **{key: value for key, value in keys.items() if value is not None})


def test_oddities_that_llama_cpp_accepts_are_accepted(tmp_path):
    keys = spm_keys()
    keys["ggml_tokens"][3] = ""
    keys["ggml_scores"] = [int(s) for s in keys["ggml_scores"]] + [7]  # integers, and one more than tokens
    tokenizer = load(tmp_path, **keys)
    assert tokenizer.text_of(3) == "[EMPTY_3]"
    assert words(tokenizer, "ab") == ["▁ab"]
    del keys["ggml_token_type"]
    assert load(tmp_path, **keys).control_texts == ("</s>",)  # found by its text: all others are normal
