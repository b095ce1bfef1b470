"""Convert a Hugging Face folder of a family that `CONVERTERS` names, or of LLaVA, to a GGUF pair.

`python -m llava_ref.conformance.convert FOLDER OUT_PREFIX [--type f16]` reads config.json, model*.safetensors,
tokenizer.model or tokenizer.json, and preprocessor_config.json if present, and writes OUT_PREFIX-text.gguf and
OUT_PREFIX-mmproj.gguf. One tensor is in memory at a time.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava_ref.errors import LlavaError

from ..pairs.pairs import Pair
from ..pairs.writing import Metadata, StoredTensor, held, write
from . import gemma3, hf_tokenizer, hf_weights, idefics3, internvl, mllama, pixtral, qwen2vl
from .hf_bpe import read_bpe
from .hf_config import ConversionError, read_text, read_vision

TYPES = ("F32", "F16", "BF16", "Q8_0")
Config = Mapping[str, Any]
Part = tuple[Metadata, dict[str, StoredTensor]]


def convert_folder(folder: Path, out_prefix: str, kind: str = "F16") -> Pair:
    """Write the pair and return its paths. Raises ConversionError for what is missing, unexpected or unsupported."""
    config = _read_json(folder, "config.json", required=True)
    family = _family(config)
    vocabulary = family.vocabulary(folder, family.n_vocab(str(folder), config), config)
    metadata: dict[str, Any] = {"general.name": folder.resolve().name, **vocabulary}
    if template := _template(folder):
        metadata["tokenizer.chat_template"] = template
    processor = _read_json(folder, "preprocessor_config.json")
    return _write(config, processor, hf_weights.open_folder(folder), metadata, out_prefix, kind)


def from_module(model: nn.Module, vocabulary: Metadata, out_prefix: str, kind: str = "F32") -> Pair:
    """Write the pair of a model in memory; `vocabulary` has a token for every embedding."""
    config: dict[str, Any] = model.config.to_dict()  # type: ignore[union-attr,operator]
    state: dict[str, torch.Tensor] = model.state_dict()
    source = hf_weights.Source("model", {name: held(tensor.float().numpy()) for name, tensor in state.items()})
    return _write(config, {}, source, dict(vocabulary), out_prefix, kind)


def _write(
    config: dict[str, Any],
    processor: dict[str, Any],
    source: hf_weights.Source,
    vocabulary: dict[str, Any],
    out_prefix: str,
    kind: str,
) -> Pair:
    family, tokens = _family(config), vocabulary["tokenizer.ggml.tokens"]
    text, vision = family.convert(source, config, processor, len(tokens))
    repeated = {name: _row(source.where, text[1], tokens, token) for name, token in family.repeated.items()}
    pair = Pair(Path(f"{out_prefix}-text.gguf"), Path(f"{out_prefix}-mmproj.gguf"))
    write(pair.text, {**text[0], **vocabulary}, text[1], kind)
    write(pair.mmproj, vision[0], vision[1] | repeated, kind)
    return pair


def _row(where: str, text: Mapping[str, StoredTensor], tokens: Sequence[str], token: str) -> StoredTensor:
    """Return the row of a token in the table of embeddings. Raises ConversionError."""
    if token not in tokens:
        raise ConversionError(where, "tokenizer.json", f"has no token {token}")
    table, row = text["token_embd.weight"], tokens.index(token)
    return StoredTensor(table.shape[1:], lambda: table.load()[row])


def _convert_llava(source: hf_weights.Source, config: Config, processor: Config, n_kept: int) -> tuple[Part, Part]:
    """Return metadata and tensors of the text file and of the mmproj. Raises ConversionError."""
    text = read_text(source.where, config)
    vision = read_vision(source.where, config, text.width, processor)
    parts = (
        (text.metadata, hf_weights.text_tensors(source, text, n_kept)),
        (vision.metadata, hf_weights.vision_tensors(source, vision)),
    )
    source.finish(hf_weights.unused_names(vision))
    return parts


def _n_vocab_llama(where: str, config: Config) -> int:
    return read_text(where, config).n_vocab


def _bpe(folder: Path, n_rows: int, config: Config) -> Metadata:
    return read_bpe(folder, n_rows)


def _pieces(folder: Path, n_rows: int, config: Config) -> Metadata:
    """Read SentencePiece's pieces: a picture token among them stays."""
    return hf_tokenizer.read_folder(folder, n_rows, None).metadata()


def _pieces_without_picture_token(folder: Path, n_rows: int, config: Config) -> Metadata:
    """Read SentencePiece's pieces but the picture token, which LLaVA's folder adds to its decoder's vocabulary."""
    image_token = config.get("image_token_index", config.get("image_token_id"))
    return hf_tokenizer.read_folder(folder, n_rows, image_token).metadata()


@dataclass(frozen=True)
class Converter:
    """What is a family's own in a conversion."""

    convert: Callable[[hf_weights.Source, Config, Config, int], tuple[Part, Part]]
    n_vocab: Callable[[str, Config], int]  # of the folder's name and its config: the number of embeddings
    vocabulary: Callable[[Path, int, Config], Metadata]  # the `tokenizer.` keys for so many embeddings
    repeated: Mapping[str, str] = field(default_factory=dict)  # tensors of the mmproj: the token whose row each is


PIXTRAL = Converter(pixtral.convert_pixtral, _n_vocab_llama, _bpe, pixtral.REPEATED)
LLAVA = Converter(_convert_llava, _n_vocab_llama, _pieces_without_picture_token)
CONVERTERS: Mapping[str, Converter] = {  # by a config's model_type
    "gemma3": Converter(gemma3.convert_gemma3, gemma3.n_vocab, _pieces),
    **dict.fromkeys(idefics3.KINDS, Converter(idefics3.convert_idefics3, _n_vocab_llama, _bpe)),
    "mllama": Converter(mllama.convert_mllama, mllama.n_vocab, _bpe),
    "internvl": Converter(internvl.convert_internvl, internvl.n_vocab, _bpe),
    **dict.fromkeys(qwen2vl.KINDS, Converter(qwen2vl.convert_qwen, qwen2vl.n_vocab, _bpe)),
}


def _family(config: Config) -> Converter:
    """Return the converter of a config; LLaVA's, which refuses what it does not know, if no other has its type."""
    if (config.get("vision_config") or {}).get("model_type") == pixtral.TOWER:  # of `llava` and of `mistral3`
        return PIXTRAL
    return CONVERTERS.get(config.get("model_type", ""), LLAVA)


def _template(folder: Path) -> str | None:
    """Return the tokenizer's chat template: a file of its own, or a setting."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    found = _read_json(folder, "tokenizer_config.json").get("chat_template")
    return found if isinstance(found, str) else None


def _read_json(folder: Path, name: str, *, required: bool = False) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        if required:
            raise ConversionError(folder, name, "missing file")
        return {}
    try:
        read: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConversionError(folder, name, f"not JSON: {error}") from error
    return read


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llava_ref.conformance.convert", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a checkpoint of transformers")
    parser.add_argument("out_prefix", metavar="OUT_PREFIX", help="writes OUT_PREFIX-text.gguf, OUT_PREFIX-mmproj.gguf")
    parser.add_argument("--type", type=str.upper, choices=TYPES, default="F16", help="type of the matrices")
    args = parser.parse_args(arguments)
    try:
        pair = convert_folder(args.folder, args.out_prefix, args.type)
    except LlavaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(pair.text, pair.mmproj, sep="\n")
    return 0
