"""Vocabularies of Hugging Face folders, from both kinds of file, against the libraries that define them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from llava_ref import gguf
from llava_ref.conformance.convert import hf_tokenizer
from llava_ref.conformance.convert.hf_config import ConversionError
from llava_ref.conformance.pairs import pairs
from llava_ref.conformance.pairs.writing import write
from llava_ref.tokenizer.tokenizer import Tokenizer

from .tiny_vocabulary import N_BASE, fast_tokenizer

pytestmark = pytest.mark.oracle


def test_added_tokens_keep_their_ids_and_the_image_token_needs_none(tmp_path: Path) -> None:
    added = [("<image>", True), ("<|im_end|>", True), ("[SEP]", False), ("<pad>", True)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(fast_tokenizer(added)))
    found = hf_tokenizer.read_folder(tmp_path, N_BASE + 64, N_BASE)
    assert found.texts[N_BASE:] == ["<image>", "<|im_end|>", "[SEP]"]
    assert found.kinds[N_BASE:] == [hf_tokenizer.UNUSED, hf_tokenizer.CONTROL, hf_tokenizer.USER_DEFINED]
    with pytest.raises(ConversionError, match="tokenizer has more tokens"):
        hf_tokenizer.read_folder(tmp_path, N_BASE + 2, N_BASE)


def test_a_folder_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"tokenizer\.model: missing file"):
        hf_tokenizer.read_folder(tmp_path, 300, None)
    for model, problem in (
        ({"type": "BPE", "vocab": {}, "merges": []}, "byte fallback"),
        ({"type": "Unigram", "byte_fallback": True}, "byte fallback"),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
        with pytest.raises(ConversionError, match=problem):
            hf_tokenizer.read_folder(tmp_path, 300, None)


def train(folder: Path, **change: Any) -> Path:
    """Train a small BPE sentencepiece model with byte fallback and Llama's options, except `change`."""
    skip = "sentencepiece is not installed: it comes with the training extra"
    options = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False, **change}
    pytest.importorskip("sentencepiece", reason=skip).SentencePieceTrainer.train(
        sentence_iterator=iter(["the red circle is left of a blue square"] * 50),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        byte_fallback=True,
        hard_vocab_limit=False,
        user_defined_symbols=["[X]"],
        minloglevel=2,
        **options,
    )
    return folder / "tokenizer.model"


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = train(tmp_path_factory.mktemp("spm"))
    return pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(path)), path


@pytest.mark.parametrize("change", [{"model_type": "unigram"}, {"remove_extra_whitespaces": True}])
def test_a_sentencepiece_model_of_another_kind_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    data = train(tmp_path, **change).read_bytes()
    with pytest.raises(ConversionError, match=f"_spec.{next(iter(change))}: "):
        hf_tokenizer.parse_sentencepiece(data, "here")


def test_a_sentencepiece_model_is_read_as_the_library_reads_it(sentencepiece_model: Any) -> None:
    library, path = sentencepiece_model
    found, ids = hf_tokenizer.parse_sentencepiece(path.read_bytes(), "here"), range(library.get_piece_size())
    assert found.texts == [library.id_to_piece(i) for i in ids]
    assert np.allclose(found.scores, [library.get_score(i) for i in ids])
    assert [kind == hf_tokenizer.BYTE for kind in found.kinds] == [library.is_byte(i) for i in ids]
    assert [kind == hf_tokenizer.CONTROL for kind in found.kinds] == [library.is_control(i) for i in ids]
    assert (found.unknown, found.bos, found.eos) == (library.unk_id(), library.bos_id(), library.eos_id())


def test_our_tokenizer_on_a_converted_model_gives_the_librarys_ids(sentencepiece_model: Any, tmp_path: Path) -> None:
    library, path = sentencepiece_model
    metadata = hf_tokenizer.parse_sentencepiece(path.read_bytes(), "here").metadata()
    tokenizer = Tokenizer.from_gguf(written(tmp_path, metadata))
    for text in ("the red circle", "left of blue  squares", "ähh 3", "a"):
        assert tokenizer.encode(text) == library.encode(text)


def test_our_tokenizer_on_a_converted_tokenizer_json_gives_that_librarys_ids(tmp_path: Path) -> None:
    contents = fast_tokenizer([])
    contents["normalizer"]["normalizers"].append({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    described = {"version": "1.0", **contents, "added_tokens": []}
    described |= {"truncation": None, "padding": None, "post_processor": None, "decoder": None}
    library = tokenizers.Tokenizer.from_str(json.dumps(described))
    tokenizer = Tokenizer.from_gguf(written(tmp_path, hf_tokenizer.parse_tokenizers(contents, "here").metadata()))
    for text in ("abc", "a bc bcc", "ccc  b", "abcé a", "bbbccc"):
        assert tokenizer.encode(text) == library.encode(text).ids


def written(folder: Path, vocabulary: Any) -> gguf.GGUFFile:
    """Write a small text model with this vocabulary."""
    spec = replace(pairs.TextSpec(), n_layer=1)
    write(folder / "text.gguf", {**pairs.text_metadata(spec), **vocabulary}, {})
    return gguf.read(folder / "text.gguf")


@pytest.mark.parametrize("spoil", [lambda d: d[:-9], lambda d: b"\x0a\xff\xff\xff\x7f" + d, lambda d: b"\x0b" + d])
def test_a_damaged_sentencepiece_model_is_refused(sentencepiece_model: Any, spoil: Any) -> None:
    with pytest.raises(ConversionError, match="not a sentencepiece model"):
        hf_tokenizer.parse_sentencepiece(spoil(sentencepiece_model[1].read_bytes()), "here")
