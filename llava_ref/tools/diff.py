"""`diff`: compare two trace files stage by stage and name the first stage that exceeds its tolerance."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import ParameterError, visible
from ..gguf.types import TYPES
from ..models.order import place
from ..tracing.distance import Distance, bad_numbers, distance, fitted, rounding
from ..tracing.trace import ON_REQUEST, Probe
from ..tracing.tracefile import TraceFile
from . import options
from .output import coloured, note, print_json
from .parser import Example, Parser

FLOAT32_NOISE = 1e-4
"""Tolerance between two float32 computations of one model: ten times the difference of torch and numpy on random
models."""
TOLERANCE = {"F64": 2e-3, "F32": 2e-3, "F16": 5e-3, "BF16": 2e-2}
QUANTISED_32, QUANTISED_256 = 6e-2, 1e-1
"""Tolerances against an engine that rounds activations to suit the weights' type, with blocks of 32 and 256. Measured
end to end on random models, on which llama.cpp differs from itself by as much under other settings."""


@dataclass(frozen=True, slots=True)
class StageDiff:
    """Holds the comparison of one stage. `problem` says why it exceeds its tolerance, None if it does not."""

    name: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    tolerance: float = 0.0
    distance: Distance | None = None
    problem: str | None = None
    remarks: tuple[str, ...] = ()


EXAMPLES: Sequence[Example] = (
    (
        "llava-ref diff ours.safetensors theirs.safetensors",
        "a row for each stage; the first over its tolerance on standard error; exit code 1 if one is",
    ),
)


def add_arguments(parser: Parser) -> None:
    group = parser.group("files")
    group.add_argument("a", type=Path, metavar="A.safetensors", help="a trace file")
    group.add_argument("b", type=Path, metavar="B.safetensors", help="the reference")
    parser.group("measurement").add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="relative RMS difference that still counts as equal (default: by the weights' types in the header)",
    )
    options.add_json(parser, "print the comparison as JSON")


def run(args: argparse.Namespace) -> int:
    """Return 0 if every stage that both files have is within its tolerance, else 1."""
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


def compare(a: TraceFile, b: TraceFile, tolerance: float | None) -> list[StageDiff]:
    """Compare every stage of either file, in the order computed (`models.order.place`).

    The default tolerance grows with recorded rounding; a given `tolerance` does not."""
    bound = default_tolerance(a, b) if tolerance is None else tolerance
    names = sorted({*a, *b}, key=lambda name: (place(name), name))
    return [_compared(name, a, b, bound, widen=tolerance is None) for name in names]


def _compared(name: str, a: TraceFile, b: TraceFile, bound: float, *, widen: bool) -> StageDiff:
    """Compare one stage with a tolerance, to which `widen` adds the rounding of files in F16 or BF16."""
    if name not in a or name not in b:
        return _absent(name, a, b)
    x, y = a[name], b[name]
    shapes, x = (x.shape, y.shape), fitted(x, y.shape)
    if x.shape != y.shape:
        turned = ", one is the other transposed" if x.shape == y.shape[::-1] else ""
        return StageDiff(name, shapes, problem=f"shapes differ{turned}")
    if not x.size:
        return StageDiff(name, shapes, remarks=("empty",))
    remarks = [f"shapes {shapes[0]} and {shapes[1]}"] if shapes[0] != shapes[1] else []
    exact = x.dtype.kind in "iub" or y.dtype.kind in "iub"
    for trace, array in ((a, x), (b, y)) if not exact else ():
        if name in trace.rounded:
            moved = rounding(array, trace.rounded[name])[0] if widen else 0.0
            bound += moved
            remarks.append(
                f"{trace.path.name} has {trace.rounded[name]}" + (f", {moved:.1e} more allowed" if widen else "")
            )
    d = distance(x, y, 0.0 if exact else bound)
    exceeds = d.max_abs > 0 if exact else not d.rel_rms <= bound
    bad, alike = bad_numbers(x, y, (a.path.name, b.path.name), 1 if ON_REQUEST in name else 0)
    problem = (bad if not alike else "over tolerance") if exceeds else None
    remarks += [bad] if bad and alike else []
    return StageDiff(name, shapes, 0.0 if exact else bound, d, problem, tuple(remarks))


def _absent(name: str, a: TraceFile, b: TraceFile) -> StageDiff:
    """Note a stage that one file lacks, which is no fault: a file may hold any selection of stages."""
    has, lacks = (a, b) if name in a else (b, a)
    shapes = tuple(trace.shape(name) if name in trace else None for trace in (a, b))
    remark = f"only in {has.path.name}" if _asked(name, lacks) else f"{lacks.path.name} was not asked for it"
    return StageDiff(name, (shapes[0], shapes[1]), remarks=(remark,))


def _asked(name: str, trace: TraceFile) -> bool:
    """Tell whether the patterns of a trace ask for a stage."""
    globs = trace.fact("names", ["*", f"*{ON_REQUEST}"])
    return name == "token_ids" or Probe([str(glob) for glob in globs]).wants(name.partition("#")[0])


def default_tolerance(a: TraceFile, b: TraceFile) -> float:
    """Return the tolerance for two files: small for two exact runs of this program, else by the coarsest weight type.

    Raises ParameterError for an unknown type in a header."""
    if a.about.get("format") == b.about.get("format") and {t.about.get("precision") for t in (a, b)} == {"exact"}:
        return FLOAT32_NOISE
    limits = [TOLERANCE["F32"]]
    for trace in (a, b):
        for kind in set(trace.fact("types", {}).values()):
            if kind not in TYPES:
                raise ParameterError(trace.path, "__metadata__.types", f"{kind!r} is no ggml type")
            limits.append(tolerance(kind))
    return max(limits)


def tolerance(kind: str) -> float:
    """Return the tolerance of a whole run with weights of this ggml type."""
    if kind in TOLERANCE:
        return TOLERANCE[kind]
    return QUANTISED_32 if TYPES[kind].weights == 32 else QUANTISED_256


def as_json(rows: Sequence[StageDiff]) -> list[dict[str, object]]:
    """Convert the comparison to plain data. NaN and infinity, which JSON lacks, become null."""
    result = []
    for row in rows:
        numbers = {"tolerance": row.tolerance} | ({} if row.distance is None else asdict(row.distance))
        finite = {k: None if isinstance(x, float) and not math.isfinite(x) else x for k, x in numbers.items()}
        texts = {"problem": row.problem, "remark": "; ".join(row.remarks) or None}
        result.append({"name": row.name, "shapes": row.shapes, **finite, **texts})
    return result


def _print(rows: Sequence[StageDiff], bound: float) -> None:
    """Print the table, and the result on standard error."""
    width = max(len(row.name) for row in rows)
    print(f"{'stage':{width}}  {'relRMS':>8}  {'max abs':>8}  {'cosine':>9}")
    for row in rows:
        line = visible(f"{row.name:{width}}  {_numbers(row.distance)}  {_remarks(row)}".rstrip())
        print(coloured(line, "red") if row.problem else line)
    first = next((row for row in rows if row.problem), None)
    both = [row for row in rows if None not in row.shapes]
    counts = f"{len(both)} compared" + (f", {len(rows) - len(both)} in one file only" if len(rows) > len(both) else "")
    result = "every stage that both have agrees"
    if first is not None:
        result = f"{first.name} is the first stage that exceeds its tolerance"
    note(f"tolerance {bound:g}: {result} ({counts})")


def _numbers(d: Distance | None) -> str:
    return f"{d.rel_rms:8.1e}  {d.max_abs:8.1e}  {d.cosine:9.6f}" if d else " " * 29


def _remarks(row: StageDiff) -> str:
    words = [row.problem] if row.problem else []
    if row.problem and row.problem.startswith("shapes differ"):
        words = [f"{row.problem}: {row.shapes[0]} and {row.shapes[1]}"]
    elif row.problem == "over tolerance" and row.distance and row.distance.first_bad is not None:
        words = [f"over tolerance, first at {list(row.distance.first_bad)}"]
    return "; ".join([*words, *row.remarks])
