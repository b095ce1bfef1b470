"""Hold the figures that kernels' machine code shows: what may not get worse, the table as JSON and as Markdown."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llava_ref.errors import LlavaError

TARGETS = (80, 90, 100)  # A100, H100 and H200, B200
TABLE = Path(__file__).with_name("compiled.json")
REGISTERS, INSTRUCTIONS = 8, 1.05
"""What a variant may exceed its recorded figures by: registers a thread, and a factor of instructions a weight."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the machine code of a variant shows for one target.

    The loop is the innermost one that loads most from global memory; a kernel without loops counts as one trip."""

    warps: int
    registers: int  # a thread
    spills: int  # instructions that go to local memory
    stack: int  # bytes a thread
    shared: int  # bytes a program
    loop: int  # instructions of the loop's body
    trips: int  # trips of the source's loop in that body: ptxas may unroll it
    barriers: int  # in one trip, rounded up
    per_weight: float | None  # instructions of all threads in one trip, divided by the weights that it uses up
    loads: Mapping[str, int]  # pointer argument: bits of the narrowest load from it
    products: Mapping[str, int]  # opcode: how many are in the loop


Figure = tuple[str, int]
"""A variant, as "module: name", and a target."""

Table = Mapping[Figure, Figures]


def worse(old: Figures, new: Figures) -> Iterator[str]:
    """Yield a line for each figure that exceeds what it may be."""
    if new.spills:
        yield f"{new.spills} spills, expected none"
    if new.registers > old.registers + REGISTERS:
        yield f"{new.registers} registers, recorded {old.registers}"
    if new.stack > old.stack:
        yield f"{new.stack} bytes of stack, recorded {old.stack}"
    if new.barriers > old.barriers:
        yield f"{new.barriers} barriers in the loop, recorded {old.barriers}"
    if new.per_weight and old.per_weight and new.per_weight > old.per_weight * INSTRUCTIONS:
        yield f"{new.per_weight} instructions a weight, recorded {old.per_weight}"
    for name, bits in old.loads.items():
        if new.loads.get(name, bits) < bits:
            yield f"{name} is loaded {new.loads[name]} bits at a time, recorded {bits}"
    for opcode in old.products.keys() - new.products.keys():
        yield f"no {opcode} in the loop, recorded {old.products[opcode]}"


def compare(old: Table, new: Table) -> tuple[list[str], list[str]]:
    """Return a line for each figure of `new` that got worse, and for each variant that got better."""
    bad, good = [], []
    for (name, target), figures in new.items():
        recorded = old.get((name, target))
        lines = ["not in the table"] if recorded is None else list(worse(recorded, figures))
        bad += [f"{name}, sm_{target}: {line}" for line in lines]
        if recorded and not lines and any(worse(figures, recorded)):
            good.append(f"{name}, sm_{target}: better than recorded")
    return bad, good


def read_table(path: Path = TABLE) -> tuple[str, Table]:
    """Read a table and the version of Triton that made it. Raises LlavaError if there is none."""
    try:
        held = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise LlavaError(path, "table", str(error.strerror)) from error
    rows = {(name, int(sm[3:])): Figures(**row) for name, by in held["kernels"].items() for sm, row in by.items()}
    return held["triton"], rows


def read_sources(path: Path = TABLE) -> dict[str, str]:
    """Read the hash of each variant's source at the time when its figures were recorded: see `compiled.source`."""
    return json.loads(path.read_text("utf-8"))["sources"]


def write_table(made_by: str, sources: Mapping[str, str], table: Table, path: Path = TABLE) -> None:
    """Write a table, a line for each variant and target, so that the difference of two versions can be read."""
    blocks = []
    for name in sorted({name for name, _ in table}):
        row = {f"sm_{target}": asdict(table[name, target]) for target in TARGETS if (name, target) in table}
        lines = ",\n".join(f"   {json.dumps(sm)}: {json.dumps(figures)}" for sm, figures in row.items())
        blocks.append(f"  {json.dumps(name)}: {{\n{lines}\n  }}")
    text = ",\n".join(blocks)
    hashes = ",\n".join(f"  {json.dumps(name)}: {json.dumps(sources[name])}" for name in sorted(sources))
    head = f'"triton": {json.dumps(made_by)},\n "sources": {{\n{hashes}\n }}'
    path.write_text(f'{{\n {head},\n "kernels": {{\n{text}\n }}\n}}\n', "utf-8")


def markdown(table: Table) -> str:
    """Show a row for each variant, its figures for the three targets between slashes where they differ."""
    heads = "warps", "registers", "shared bytes", "instructions", "barriers", "instructions a weight", "loads"
    rows = [f"| kernel | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for name in sorted({name for name, _ in table}):
        cells = zip(*(_cells(table.get((name, target)), len(heads)) for target in TARGETS), strict=True)
        rows.append("| " + " | ".join([name, *(_join(texts) for texts in cells)]) + " |")
    return "\n".join(rows)


def _cells(figures: Figures | None, count: int) -> list[str]:
    if figures is None:
        return ["-"] * count
    trip = round(figures.loop / figures.trips)
    weight = "" if figures.per_weight is None else f"{figures.per_weight:.2f}"
    widths = ", ".join(f"{name} {bits}" for name, bits in figures.loads.items())
    return [*map(str, (figures.warps, figures.registers, figures.shared, trip, figures.barriers)), weight, widths]


def _join(texts: Sequence[str]) -> str:
    """Write texts once that are the same for every target that has one."""
    return texts[-1] if set(texts) <= {texts[-1], "-"} else " / ".join(texts)


def section(table: Table) -> str:
    """Show the table for sm_90 in short: the range of each kernel's variants, and what a weight of each type costs."""
    rows = ["| kernel | variants | registers | barriers | instructions a weight |", "|" + "---|" * 5]
    groups: dict[str, list[Figures]] = {}
    for (name, target), figures in sorted(table.items()):
        if target == 90:
            module, kernel = re.split("[ ,:]+", name)[:2]
            groups.setdefault(module if kernel == module else f"{module}: {kernel}", []).append(figures)
    for name, of in groups.items():
        weights = _range([f.per_weight for f in of if f.per_weight is not None], ".2f")
        spans = _range([f.registers for f in of]), _range([f.barriers for f in of]), weights
        rows.append(f"| {name} | {len(of)} | {' | '.join(spans)} |")
    return "\n".join(rows) + "\n\n" + _by_type(table)


def _by_type(table: Table) -> str:
    """Show the instructions that a weight of each type takes in `matvec` on sm_90, by the number of rows."""
    cells: dict[str, dict[str, Figures]] = {}
    for (name, target), figures in table.items():
        if target == 90 and (found := re.fullmatch(r"matvec: matvec (\w+), (\d+ rows?)", name)):
            cells.setdefault(found[1], {})[found[2]] = figures
    heads = sorted({head for row in cells.values() for head in row})
    rows = [f"| matvec, instructions a weight | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for kind, row in cells.items():
        rows.append(f"| {kind} | {' | '.join(f'{row[head].per_weight:.2f}' for head in heads)} |")
    return "\n".join(rows)


def _range(values: Sequence[float], form: str = "") -> str:
    """Write the smallest and the largest of values, or the one that all are."""
    return " to ".join(dict.fromkeys(format(f(values), form) for f in (min, max))) if values else ""
