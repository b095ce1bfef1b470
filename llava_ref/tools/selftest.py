"""`selftest`: compare every operation of a backend, and every kernel, with its float64 definition."""

import argparse
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import chain

from ..benchmark.trials import Tested, Trial, kernels, operations, run_trials
from ..errors import visible
from ..extras import missing
from ..ops import get_ops
from . import options
from .output import coloured, note, print_json
from .parser import Example, Parser

EXAMPLES: Sequence[Example] = (
    ("llava-ref selftest", "a row for each operation: its error, its bound, the worst case; exit code 1 if one fails"),
    ("llava-ref selftest --device cuda --precision fast", "the same for the kernels of a card"),
)


def add_arguments(parser: Parser) -> None:
    options.add_backend(parser)
    help_ = "default: both, where there is a fast; kernels are tested with fast"
    parser.group("computation").add_argument("--precision", choices=("exact", "fast"), help=help_)
    options.add_json(parser, "print one JSON object")


def run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    precisions = [args.precision] if args.precision else there(args.backend, args.device)
    rows = run_trials(trials(args.backend, args.device, args.threads, precisions))
    failed = [f"{row.operation} {sort}".strip() for row in rows for sort in row.failed]
    if args.json:
        about = {"ok": not failed, "backend": args.backend, "device": args.device}
        print_json(about | {"operations": [_as_json(row) for row in rows]})
    else:
        _print(rows)
    if args.precision is None and args.backend == "torch" and "fast" not in precisions:
        note(f"[no precision fast: {missing('fast')}]")
    note(f"[{sum(row.n_cases for row in rows)} cases in {time.perf_counter() - began:.1f} s]")
    if failed:
        note(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def there(backend: str, device: str) -> list[str]:
    """Return the precisions that there are."""
    fast = device == "cuda" or (backend == "torch" and find_spec("llvmlite") is not None)
    return ["exact", "fast"] if fast else ["exact"]


def trials(backend: str, device: str, threads: int | None, precisions: Sequence[str]) -> Iterable[Trial]:
    """Return everything that is to be tested. Raises ParameterError for a backend or device that is absent."""
    found = [operations(get_ops(backend, device, threads, 0, precision), precision, device) for precision in precisions]
    return chain(*found, kernels(device) if "fast" in precisions else ())


def _print(rows: list[Tested]) -> None:
    width = max(len(row.operation) for row in rows)
    print(f"{'operation':{width}}  cases     error     bound  worst case")
    for row in rows:
        print(f"{row.operation:{width}}  {row.n_cases:5}  {row.error:8.1e}  {row.bound:8.1e}  {row.worst}".rstrip())
        for sort, problem in row.failed.items():
            print(f"{'':{width}}  {coloured(visible(f'FAILED {sort}: {problem}'), 'red')}")


def _as_json(row: Tested) -> dict[str, object]:
    """Return the row as plain data; JSON has no infinity."""
    return asdict(row) | {"ok": not row.failed, "error": row.error if math.isfinite(row.error) else None}
