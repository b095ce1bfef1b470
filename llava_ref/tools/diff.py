"""`diff`: two trace files, stage by stage; the first stage that is out is named."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import ParameterError
from ..gguf.types import TYPES
from ..models.order import place
from ..tracing.distance import Distance, bad_numbers, distance, fitted, rounding
from ..tracing.trace import ON_REQUEST, Probe
from ..tracing.tracefile import TraceFile
from .output import note, print_json

FLOAT32_NOISE = 1e-4
"""Between two float32 computations of one model: ten times what torch and numpy differ by on random models."""
TOLERANCE = {"F64": 2e-3, "F32": 2e-3, "F16": 5e-3, "BF16": 2e-2}
QUANTISED_32, QUANTISED_256 = 6e-2, 1e-1
"""Against an engine that rounds activations to the weights' type: measured end to end on random models, where llama.cpp
differs from itself by as much under other settings."""


@dataclass(frozen=True, slots=True)
class Row:
    """One stage of two traces. `problem` says why it is out, None if it is not; `remarks`, what else there is."""

    name: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    tolerance: float = 0.0
    distance: Distance | None = None
    problem: str | None = None
    remarks: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A.safetensors")
    parser.add_argument("b", type=Path, metavar="B.safetensors", help="the reference")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="relative RMS difference that is still the same (default: by the weights' types, as the header has them)",
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def run(args: argparse.Namespace) -> int:
    """0 if every stage that both files have is within its tolerance; otherwise 1."""
    a, b = TraceFile(args.a), TraceFile(args.b)
    if args.tolerance is not None and not 0 <= args.tolerance < math.inf:
        raise ParameterError("--tolerance", str(args.tolerance), "expected a number from 0")
    if not (set(a) & set(b)):
        raise ParameterError(str(args.b), "names", f"has no stage in common with {args.a}")
    rows = compare(a, b, args.tolerance)
    first = next((row for row in rows if row.problem), None)
    bound = default_tolerance(a, b) if args.tolerance is None else args.tolerance
    if args.json:
        print_json({"tolerance": bound, "same": first is None, "first": first and first.name, "stages": as_json(rows)})
    else:
        _print(rows, bound)
    return 1 if first else 0


def compare(a: TraceFile, b: TraceFile, tolerance: float | None) -> list[Row]:
    """Every stage of either file, as they are computed (`models.stages.place`). A `tolerance` that is given holds as
    it is."""
    bound = default_tolerance(a, b) if tolerance is None else tolerance
    names = sorted({*a, *b}, key=lambda name: (place(name), name))
    return [_row(name, a, b, bound, widen=tolerance is None) for name in names]


def _row(name: str, a: TraceFile, b: TraceFile, bound: float, *, widen: bool) -> Row:
    if name not in a or name not in b:
        return _absent(name, a, b)
    x, y = a[name], b[name]
    shapes, x = (x.shape, y.shape), fitted(x, y.shape)
    if x.shape != y.shape:
        turned = ", one is the other transposed" if x.shape == y.shape[::-1] else ""
        return Row(name, shapes, problem=f"shapes differ{turned}")
    if not x.size:
        return Row(name, shapes, remarks=("empty",))
    remarks = [f"shapes {shapes[0]} and {shapes[1]}"] if shapes[0] != shapes[1] else []
    exact = x.dtype.kind in "iub" or y.dtype.kind in "iub"
    for trace, array in ((a, x), (b, y)) if not exact else ():
        if name in trace.rounded:
            moved = rounding(array, trace.rounded[name])[0] if widen else 0.0
            bound += moved
            remarks.append(
                f"{trace.path.name} has {trace.rounded[name]}" + (f", {moved:.1e} more allowed" if widen else "")
            )
    found = distance(x, y, 0.0 if exact else bound)
    out = found.max_abs > 0 if exact else not found.rel_rms <= bound
    bad, alike = bad_numbers(x, y, (a.path.name, b.path.name), 1 if ON_REQUEST in name else 0)
    problem = (bad if not alike else "over tolerance") if out else None
    remarks += [bad] if bad and alike else []
    return Row(name, shapes, 0.0 if exact else bound, found, problem, tuple(remarks))


def _absent(name: str, a: TraceFile, b: TraceFile) -> Row:
    """A note: a file may hold as few stages as it likes."""
    has, lacks = (a, b) if name in a else (b, a)
    shapes = tuple(trace.shape(name) if name in trace else None for trace in (a, b))
    said = f"only in {has.path.name}" if _asked(name, lacks) else f"{lacks.path.name} was not asked for it"
    return Row(name, (shapes[0], shapes[1]), remarks=(said,))


def _asked(name: str, trace: TraceFile) -> bool:
    """Whether a trace would have this stage if its run had it."""
    globs = trace.fact("names", ["*", f"*{ON_REQUEST}"])
    return name == "token_ids" or Probe([str(glob) for glob in globs]).wants(name.partition("#")[0])


def default_tolerance(a: TraceFile, b: TraceFile) -> float:
    """By what made the two: this program twice in one precision, or the coarsest type among the weights."""
    if a.about.get("format") == b.about.get("format") and {t.about.get("precision") for t in (a, b)} == {"exact"}:
        return FLOAT32_NOISE
    found = [TOLERANCE["F32"]]
    for trace in (a, b):
        for kind in set(trace.fact("types", {}).values()):
            if kind not in TYPES:
                raise ParameterError(trace.path, "__metadata__.types", f"{kind!r} is no ggml type")
            found.append(tolerance(kind))
    return max(found)


def tolerance(kind: str) -> float:
    """For a whole run with weights of this ggml type."""
    if kind in TOLERANCE:
        return TOLERANCE[kind]
    return QUANTISED_32 if TYPES[kind].weights == 32 else QUANTISED_256


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """NaN and infinity as null, which JSON has no other word for."""
    result = []
    for row in rows:
        numbers = {"tolerance": row.tolerance} | ({} if row.distance is None else asdict(row.distance))
        finite = {k: None if isinstance(x, float) and not math.isfinite(x) else x for k, x in numbers.items()}
        said = {"problem": row.problem, "remark": "; ".join(row.remarks) or None}
        result.append({"name": row.name, "shapes": row.shapes, **finite, **said})
    return result


def _print(rows: Sequence[Row], bound: float) -> None:
    width = max(len(row.name) for row in rows)
    print(f"{'stage':{width}}  {'relRMS':>8}  {'max abs':>8}  {'cosine':>9}")
    for row in rows:
        print(f"{row.name:{width}}  {_numbers(row.distance)}  {_said(row)}".rstrip())
    first = next((row for row in rows if row.problem), None)
    both = [row for row in rows if None not in row.shapes]
    counts = f"{len(both)} compared" + (f", {len(rows) - len(both)} in one file only" if len(rows) > len(both) else "")
    found = "every stage that both have agrees" if first is None else f"{first.name} is the first stage out"
    note(f"tolerance {bound:g}: {found} ({counts})")


def _numbers(d: Distance | None) -> str:
    return f"{d.rel_rms:8.1e}  {d.max_abs:8.1e}  {d.cosine:9.6f}" if d else " " * 29


def _said(row: Row) -> str:
    words = [row.problem] if row.problem else []
    if row.problem and row.problem.startswith("shapes differ"):
        words = [f"{row.problem}: {row.shapes[0]} and {row.shapes[1]}"]
    elif row.problem == "over tolerance" and row.distance and row.distance.first_bad is not None:
        words = [f"over tolerance, first at {list(row.distance.first_bad)}"]
    return "; ".join([*words, *row.remarks])
