"""A prompt string -> chunks of token ids and image slots, by the profile's rule for text around pictures."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import PromptError
from ..profiles import Quirks
from ..tokenizer.quote import IMAGE, Quote
from ..tokenizer.tokenizer import Tokenizer
from .rendering import Prompt

__all__ = ["ImageChunk", "Prompt", "TextChunk", "chunks", "raw"]


@dataclass(frozen=True, slots=True)
class TextChunk:
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ImageChunk:
    """The place of picture number `index` of the prompt."""

    index: int


def raw(text: str, n_images: int, tokenizer: Tokenizer) -> Prompt:
    """A prompt taken as it stands: control tokens in it count, and each `<image>` is a slot. It holds no pictures yet.

    PromptError unless there is one slot for each of `n_images`."""
    slots = text.count(IMAGE)
    if slots != n_images:
        raise PromptError("prompt", IMAGE, f"{slots} in the prompt for {n_images} images, expected one for each")
    return Prompt(text, Quote.over([text], tokenizer.control_texts), ())


def chunks(prompt: Prompt, tokenizer: Tokenizer, quirks: Quirks) -> list[TextChunk | ImageChunk]:
    """Token ids of the text between slots, and the slots, in order. Texts that give no tokens are left out.

    BOS comes first if the vocabulary asks for it and the prompt does not begin with it already; `quirks.end_token`
    decides about EOS at the end.

    `quirks.text_pieces` decides where an SPM vocabulary's space prefix goes:
      separate           before each piece: they are tokenised one by one (LLaVA v1.2.2, tokenizer_image_token)
      whole              before the first piece only: `<image>` is a special token inside one string (transformers 5,
                         LlamaTokenizer), and no space goes before a space
      separate-prefixed  before each piece and after each control token (llama.cpp b10605, llama-vocab.cpp)
    """
    pieces = prompt.text.split(IMAGE)
    encoded = [_encode(piece, i, prompt.quote, tokenizer, quirks) for i, piece in enumerate(pieces)]
    if tokenizer.add_bos and tokenizer.bos_id is not None and encoded[0][:1] != [tokenizer.bos_id]:
        encoded[0].insert(0, tokenizer.bos_id)
    if quirks.end_token == "append" and tokenizer.add_eos and tokenizer.eos_id is not None:
        encoded[-1].append(tokenizer.eos_id)
    return list(_interleave(encoded))


def _encode(piece: str, place: int, quote: Quote, tokenizer: Tokenizer, quirks: Quirks) -> list[int]:
    if not piece:
        return []
    return tokenizer.encode(
        piece,
        quote=quote,
        prefix=place == 0 and not piece.startswith(" ") if quirks.text_pieces == "whole" else True,
        prefix_after_special=quirks.text_pieces == "separate-prefixed",
    )


def _interleave(encoded: list[list[int]]) -> Iterator[TextChunk | ImageChunk]:
    for place, ids in enumerate(encoded):
        if place:
            yield ImageChunk(place - 1)
        if ids:
            yield TextChunk(tuple(ids))
