"""Write the table of docs/quirks.md from `llava_ref.profiles`: `make quirks`, or `python docs/tables/quirks.py`."""

import re
from pathlib import Path

from llava_ref.profiles import QUIRKS, Quirk

PAGE = Path(__file__).parents[1] / "quirks.md"
HEADER = ("quirk", "`llava`: the original code (default)", "`hf`: transformers 5.24", "`llama.cpp`: b10605 to b11739")
BLOCK = re.compile(r"(<!-- quirks: written by make quirks -->\n).*?(\n\n)", re.DOTALL)


def table() -> str:
    """Return the table in Markdown, one row per quirk."""
    rows = [HEADER, ("---",) * len(HEADER), *(cells(name, row) for name, row in QUIRKS.items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cells(name: str, row: Quirk) -> list[str]:
    """Return what a quirk is about, then each profile's value; a value is explained where it first stands."""
    found = [f"`{name}`: {row.about}" + (f", {row.where}" if row.where else "")]
    for i, value in enumerate(values := list(row.profiles.values())):
        found.append(f"`{value}`" if value in values[:i] else f"`{value}`: {row.values[value]}")
    return found


def main() -> None:
    """Put the table into the page's block. Raises AssertionError if the page has no such block."""
    page = PAGE.read_text(encoding="utf-8")
    assert BLOCK.search(page), "the page has no place for the table of quirks"
    PAGE.write_text(BLOCK.sub(lambda found: found[1] + table() + found[2], page), encoding="utf-8")


if __name__ == "__main__":
    main()
