"""Sort the names of stages as they are computed, whichever family they are of."""

import re
from collections.abc import Iterable

from . import clip, gemma3, idefics3, internvl, llama, mllama, mllama_vision, pixtral, qwen2vl, siglip
from .stages import Table

TOWERS = (
    clip.TABLE,
    clip.NORM_TABLE,
    clip.LDP_TABLE,
    clip.PEG_TABLE,
    internvl.TABLE,
    siglip.TABLE,
    idefics3.TABLE,
    qwen2vl.TABLE,
    qwen2vl.GATED_TABLE,
    pixtral.TABLE,
    mllama_vision.TABLE,
    mllama_vision.GLOBAL_TABLE,
)
TEXTS = (llama.TABLE, gemma3.TABLE, mllama.LOOK_TABLE)


def place(name: str) -> tuple[int, ...]:
    """Return a key that sorts names as their stages are computed: the pictures one after the other, the token ids, the
    sequences; blocks by number; a name that is no stage behind all others."""
    bare, hash_, run = name.partition("#")
    block = re.match(r"(?:vision\.(?:global\.)?)?blk\.([0-9]+)\.", bare)
    found = _PLACES.get(_bare(bare))
    if found is None or hash_ and not re.fullmatch("[0-9]+", run):
        return (3,)
    section, part, number = found
    return section, int(run or 0), part, int(block[1]) if block else 0, number


def _bare(name: str) -> str:
    return re.sub(r"blk\.[0-9]+\.", "blk.{i}.", name, count=1)


def _merged(tables: Iterable[Table]) -> list[str]:
    """Return the names of several tables in one order that keeps the order of each."""
    names: list[str] = []
    for table in tables:
        at = 0
        for name, _ in table.rows():
            if name not in names:
                names.insert(at, name)
            at = names.index(name) + 1
    return names


def _places() -> dict[str, tuple[int, int, int]]:
    """Return for each name: section, part of it (before, in and behind its blocks), row."""
    found = {"token_ids": (1, 0, 0)}
    for section, tables in ((0, TOWERS), (2, TEXTS)):
        behind = {stage.name for table in tables for stage in table.behind}
        for number, name in enumerate(_merged(tables)):
            found[name] = (section, _part(name, name in behind), number)
    return found


def _part(name: str, behind: bool) -> int:
    """Return where a stage stands: before the blocks, in them, or behind; behind some there are further blocks."""
    if "{i}" in name:
        return 3 if "global" in name else 1
    return 0 if not behind else 2 if name.startswith("vision.post_") else 4


_PLACES = _places()
