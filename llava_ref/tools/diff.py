"""`diff`: two trace files, stage by stage; the first stage that is out is named."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..blocks import TYPES
from ..errors import ParameterError
from ..measure import Distance, distance
from ..trace import Probe
from ..tracefile import TraceFile
from .output import note, print_json

FLOAT32_NOISE = 1e-4
"""Between two float32 computations of one model: ten times what torch and numpy differ by on random models."""
TOLERANCE = {"F64": 2e-3, "F32": 2e-3, "F16": 5e-3, "BF16": 2e-2}
QUANTISED_32, QUANTISED_256 = 6e-2, 1e-1
"""Against an engine that rounds activations to the weights' type: measured end to end on random models, where llama.cpp
differs from itself by as much under other settings."""


@dataclass(frozen=True, slots=True)
class Row:
    """One stage of two traces. `problem` says why it is out, None if it is not; `remark`, what else there is to say."""

    name: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    distance: Distance | None
    problem: str | None
    remark: str | None = None


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
    """0 if every stage that both files have is within tolerance, and they have the same stages; otherwise 1."""
    a, b = TraceFile(args.a), TraceFile(args.b)
    if args.tolerance is not None and not 0 <= args.tolerance < math.inf:
        raise ParameterError("--tolerance", str(args.tolerance), "expected a number from 0")
    if not (set(a) & set(b)):
        raise ParameterError(str(args.b), "names", f"has no stage in common with {args.a}")
    bound = default_tolerance(a.about, b.about) if args.tolerance is None else args.tolerance
    rows = compare(a, b, bound)
    first = next((row for row in rows if row.problem), None)
    if args.json:
        print_json({"tolerance": bound, "same": first is None, "first": first and first.name, "stages": as_json(rows)})
    else:
        _print(rows, bound)
    return 1 if first else 0


def compare(a: TraceFile, b: TraceFile, bound: float) -> list[Row]:
    """Every stage of either file, in the order of B, those that only A has behind."""
    return [_row(name, a, b, bound) for name in [*b, *(name for name in a if name not in b)]]


def _row(name: str, a: TraceFile, b: TraceFile, bound: float) -> Row:
    if name not in a or name not in b:
        shapes = (a[name].shape if name in a else None, b[name].shape if name in b else None)
        has, lacks = (a, b) if name in a else (b, a)
        if not _asked(name, lacks):
            return Row(name, shapes, None, None, f"{lacks.path.name} was not asked for it")
        return Row(name, shapes, None, f"only in {has.path.name}")
    x, y = a[name], b[name]
    if x.shape != y.shape:
        return Row(name, (x.shape, y.shape), None, "shapes differ")
    if not x.size:
        return Row(name, (x.shape, y.shape), None, None)
    exact = x.dtype.kind in "iu"
    found = distance(x, y, 0.0 if exact else bound)
    out = found.max_abs > 0 if exact else not found.rel_rms <= bound
    return Row(name, (x.shape, y.shape), found, "over tolerance" if out else None)


def _asked(name: str, trace: TraceFile) -> bool:
    """Whether a trace would have this stage if its run had it."""
    globs = json.loads(trace.about.get("names", "null"))
    return globs is None or name == "token_ids" or Probe(globs).wants(name.partition("#")[0])


def default_tolerance(a: Mapping[str, str], b: Mapping[str, str]) -> float:
    """By what made the two: this program twice in one precision, or the coarsest type among the weights."""
    if a.get("format") == b.get("format") and a.get("precision") == b.get("precision") == "exact":
        return FLOAT32_NOISE
    kinds: set[str] = set()
    for about in (a, b):
        kinds |= set(json.loads(about.get("types", "{}")).values())
    return max(map(tolerance, kinds), default=TOLERANCE["F32"])


def tolerance(kind: str) -> float:
    """For a whole run with weights of this ggml type."""
    if kind in TOLERANCE:
        return TOLERANCE[kind]
    return QUANTISED_32 if TYPES[kind].weights == 32 else QUANTISED_256


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """NaN and infinity as null, which JSON has no other word for."""
    result = []
    for row in rows:
        numbers = {} if row.distance is None else asdict(row.distance)
        finite = {k: None if isinstance(x, float) and not math.isfinite(x) else x for k, x in numbers.items()}
        result.append({"name": row.name, "shapes": row.shapes, **finite, "problem": row.problem, "remark": row.remark})
    return result


def _print(rows: Sequence[Row], bound: float) -> None:
    width = max(len(row.name) for row in rows)
    print(f"{'stage':{width}}  {'relRMS':>8}  {'max abs':>8}  {'cosine':>9}")
    for row in rows:
        d = row.distance
        numbers = f"{d.rel_rms:8.1e}  {d.max_abs:8.1e}  {d.cosine:9.6f}" if d else " " * 29
        where = f", first at {list(d.first_bad)}" if d and row.problem and d.first_bad else ""
        shapes = f" {row.shapes[0]} and {row.shapes[1]}" if row.problem == "shapes differ" else ""
        print(f"{row.name:{width}}  {numbers}  {row.problem or row.remark or ''}{shapes}{where}".rstrip())
    first = next((row for row in rows if row.problem), None)
    note(f"tolerance {bound:g}: " + ("every stage agrees" if first is None else f"{first.name} is the first stage out"))
