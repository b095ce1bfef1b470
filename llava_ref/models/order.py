"""Sort the names of stages as they are computed, whichever family they are of."""

import re
from collections.abc import Iterable

from . import clip, gemma3, idefics3, internvl, llama, pixtral, qwen2vl, siglip
from .stages import Table

TOWERS = (
    clip.TABLE, clip.NORM_TABLE, clip.PEG_TABLE, internvl.TABLE, siglip.TABLE, idefics3.TABLE, qwen2vl.TABLE,
    qwen2vl.GATED_TABLE, pixtral.TABLE,
)  # fmt: skip
TEXTS = (llama.TABLE, gemma3.TABLE)


def place(name: str) -> tuple[int, ...]:
    """Return a key that sorts names as their stages are computed: the pictures one after the other, the token ids, the
    sequences; blocks by number; a name that is no stage behind all others."""
    bare, hash_, run = name.partition("#")
    block = re.match(r"(?:vision\.)?blk\.([0-9]+)\.", bare)
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
            found[name] = (section, 1 if "{i}" in name else 2 if name in behind else 0, number)
    return found


_PLACES = _places()
