"""Describe a quirk: one point on which implementations differ. `profiles` has the table of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

Value = TypeVar("Value", bound=str)

NAMES = ("llava", "hf", "llama.cpp")
PICTURE = ("image.", "vision.pixels")
TOWER = ("vision.", "projector.")
TOKENS = ("token_ids",)
TILES = (*PICTURE, *TOWER, *TOKENS)  # of a tile that another implementation does not make, every stage is missing
DECODER = ("blk.",)
ATTENTION = ("blk.", "vision.")
INTERNVL = "of projector `internvl`"
NAMED_TILES = "in files of projector `idefics3` (SmolVLM, Idefics3)"
MLLAMA = "in Llama-3.2-Vision"
ANYRES = "in files with `clip.vision.image_grid_pinpoints` (LLaVA-1.6)"


@dataclass(frozen=True, slots=True)
class Quirk:
    """One row of the table."""

    about: str  # a noun phrase: "the place of the class token"
    where: str  # to what it is limited: "in files with `v.post_ln`"; empty if it applies always
    seen_in: tuple[str, ...]  # beginnings of the names of the stages in which it shows
    values: Mapping[str, str]  # value -> what an implementation with this value does: "applies the norm"
    profiles: Mapping[str, str]  # profile -> value


def quirk(
    about: str, seen_in: tuple[str, ...], profiles: tuple[Value, Value, Value], values: Mapping[Value, str],
    where: str = "",
) -> Value:  # fmt: skip
    """Return a field of `Quirks`. It is typed as its value, so mypy holds `profiles` and `values` to the Literal."""
    sentences = {str(value): words for value, words in values.items()}
    row = Quirk(about, where, seen_in, sentences, dict(zip(NAMES, profiles, strict=True)))
    return field(default=profiles[0], metadata={"quirk": row})
