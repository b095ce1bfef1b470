"""Split a prompt into chunks: runs of token ids, and slots for pictures.

The profile's quirks decide how the text around a picture is tokenised.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import PromptError
from ..profiles import Quirks
from ..tokenizer.quote import IMAGE, Quote
from ..tokenizer.tokenizer import Tokenizer
from .rendering import Prompt

__all__ = ["ImageChunk", "Prompt", "TextChunk", "chunks", "raw"]


@dataclass(frozen=True, slots=True)
class TextChunk:
    """The tokens between two slots."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ImageChunk:
    """The slot of picture number `index` of the prompt."""

    index: int


def raw(text: str, n_images: int, tokenizer: Tokenizer) -> Prompt:
    """Make a prompt of `text` as it stands: its control tokens count as such, and each `<image>` is a slot.

    The prompt holds no pictures yet. Raises PromptError unless there is one slot for each of `n_images`."""
    slots = text.count(IMAGE)
    if slots != n_images:
        raise PromptError("prompt", IMAGE, f"{slots} in the prompt for {n_images} images, expected one for each")
    return Prompt(text, Quote.over([text], tokenizer.control_texts), ())


def chunks(
    prompt: Prompt, tokenizer: Tokenizer, quirks: Quirks, markers: Sequence[tuple[str, str]] = ()
) -> list[TextChunk | ImageChunk]:
    """Tokenise the text between the slots; return text and image chunks in order, without empty text chunks.

    `markers`: for each picture the text in front of its slot and behind it. It is tokenised together with the text
    beside it, because line feeds of both may be one token.

    BOS comes first if the vocabulary asks for it and the prompt does not begin with it already; `quirks.end_token`
    decides about EOS at the end.

    `quirks.text_pieces` decides where the space prefix of an SPM vocabulary goes:
      separate           before each text: each is tokenised on its own (LLaVA v1.2.2, tokenizer_image_token)
      whole              before the first text only: `<image>` is a special token inside one string (transformers 5,
                         LlamaTokenizer), and no prefix goes before a space
      separate-prefixed  before each text and after each control token (llama.cpp b10605, llama-vocab.cpp)
    """
    texts = prompt.text.split(IMAGE)
    for i, (before, after) in enumerate(markers):
        texts[i : i + 2] = texts[i] + before, after + texts[i + 1]
    encoded = [_encode(text, i, prompt.quote, tokenizer, quirks) for i, text in enumerate(texts)]
    if tokenizer.add_bos and tokenizer.bos_id is not None and encoded[0][:1] != [tokenizer.bos_id]:
        encoded[0].insert(0, tokenizer.bos_id)
    if quirks.end_token == "append" and tokenizer.add_eos and tokenizer.eos_id is not None:
        encoded[-1].append(tokenizer.eos_id)
    return list(_interleave(encoded))


def _encode(text: str, index: int, quote: Quote, tokenizer: Tokenizer, quirks: Quirks) -> list[int]:
    """Tokenise the text that stands after `index` slots."""
    if not text:
        return []
    return tokenizer.encode(
        text,
        quote=quote,
        prefix=index == 0 and not text.startswith(" ") if quirks.text_pieces == "whole" else True,
        prefix_after_special=quirks.text_pieces == "separate-prefixed",
    )


def _interleave(encoded: list[list[int]]) -> Iterator[TextChunk | ImageChunk]:
    """Put a slot between each two texts."""
    for index, ids in enumerate(encoded):
        if index:
            yield ImageChunk(index - 1)
        if ids:
            yield TextChunk(tuple(ids))
