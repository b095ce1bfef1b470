"""Split a prompt into chunks: runs of token ids, and slots for pictures.

The profile's quirks decide how the text around a picture is tokenised.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from ..errors import PromptError
from ..profiles import Quirks
from ..tokenizer.quote import IMAGE, Quote
from ..tokenizer.tokenizer import Tokenizer
from .rendering import Prompt

__all__ = ["ImageChunk", "Prompt", "TextChunk", "check_beside", "chunks", "raw"]


@dataclass(frozen=True, slots=True)
class TextChunk:
    """The tokens between two slots."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ImageChunk:
    """A stretch of the rows of picture number `index` of the prompt, by default all of them."""

    index: int
    first: int = 0
    stop: int | None = None

    @property
    def rows(self) -> slice:
        return slice(self.first, self.stop)


def raw(text: str, n_images: int, tokenizer: Tokenizer) -> Prompt:
    """Make a prompt of `text` as it stands: its control tokens count as such, and each `<image>` is a slot.

    The prompt holds no pictures yet. Raises PromptError unless there is one slot for each of `n_images`."""
    slots = text.count(IMAGE)
    if slots != n_images:
        raise PromptError("prompt", IMAGE, f"{slots} in the prompt for {n_images} images, expected one for each")
    return Prompt(text, Quote.over([text], tokenizer.control_texts), ())


def check_beside(prompt: Prompt, markers: Sequence[str]) -> None:
    """Raise PromptError if one of `markers`, which a slot stands for too, is beside a slot: it would be there twice.

    A user's text is quoted, and no marker in it counts."""
    for before, behind in pairwise(prompt.text.split(IMAGE)):
        for marker in markers:
            if before.rstrip().endswith(marker) or behind.lstrip().startswith(marker):
                problem = f"{marker} stands beside it, which it brings itself: leave {marker} out"
                raise PromptError("prompt", IMAGE, problem)


def chunks(
    prompt: Prompt, tokenizer: Tokenizer, quirks: Quirks, stretches: Sequence[Sequence[str | int]] = ()
) -> list[TextChunk | ImageChunk]:
    """Tokenise the text between the slots; return text and image chunks in order, without empty text chunks.

    `stretches`: for each picture what stands in its slot, in order: text, or a number of its rows (`Span.stretches`).
    Text is tokenised together with the text beside it, because line feeds of both may be one token.

    BOS comes first if the vocabulary asks for it and the prompt does not begin with it already; `quirks.end_token`
    decides about EOS at the end.

    `quirks.text_pieces` decides where the space prefix of an SPM vocabulary goes:
      separate           before each text: each is tokenised on its own (LLaVA v1.2.2, tokenizer_image_token)
      whole              before the first text only: `<image>` is a special token inside one string (transformers 5,
                         LlamaTokenizer), and no prefix goes before a space
      separate-prefixed  before each text and after each control token (llama.cpp b10605, llama-vocab.cpp)
    """
    texts, slots = _filled(prompt.text.split(IMAGE), stretches)
    encoded = [_encode(text, i, prompt.quote, tokenizer, quirks) for i, text in enumerate(texts)]
    if tokenizer.add_bos and tokenizer.bos_id is not None and encoded[0][:1] != [tokenizer.bos_id]:
        encoded[0].insert(0, tokenizer.bos_id)
    if quirks.end_token == "append" and tokenizer.add_eos and tokenizer.eos_id is not None:
        encoded[-1].append(tokenizer.eos_id)
    return _interleave(encoded, slots)


def _filled(texts: Sequence[str], stretches: Sequence[Sequence[str | int]]) -> tuple[list[str], list[ImageChunk]]:
    """Put the pictures' stretches between the texts; return the texts then, and the chunk between each two of them."""
    filled, slots = [texts[0]], list[ImageChunk]()
    for index, text in enumerate(texts[1:]):
        for part in (*_slot(index, stretches), text):
            if isinstance(part, str):
                filled[-1] += part
            else:
                slots.append(part)
                filled.append("")
    return filled, slots


def _slot(index: int, stretches: Sequence[Sequence[str | int]]) -> Iterator[str | ImageChunk]:
    """Yield what stands in the slot of picture number `index`."""
    if not stretches:
        yield ImageChunk(index)
        return
    first = 0
    for stretch in stretches[index]:
        if isinstance(stretch, str):
            yield stretch
        else:
            yield ImageChunk(index, first, first + stretch)
            first += stretch


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


def _interleave(encoded: Sequence[Sequence[int]], slots: Sequence[ImageChunk]) -> list[TextChunk | ImageChunk]:
    """Put a picture's rows between each two texts."""
    found: list[TextChunk | ImageChunk] = []
    for ids, slot in zip_longest(encoded, slots):
        found += [TextChunk(tuple(ids))] if ids else []
        found += [slot] if slot else []
    return found
