"""`bench`: measure the speed of every stage, and what the memory of this machine would allow."""

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ..benchmark.machine import CudaDevice, Host, Machine
from ..benchmark.measure import QUIET
from ..benchmark.measurement import Measurement, measure
from ..benchmark.workload import Workload
from ..errors import ParameterError, visible
from ..ops import get_ops
from ..ops.threads import blas, processors
from . import options
from .output import print_json

PICTURES = Path(__file__).parents[1] / "assets" / "pictures"
MOST = {"n_prompt": 1 << 20, "n_gen": 1 << 20, "repetitions": 1000}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_mmproj(parser)
    parser.add_argument("--image", type=Path, metavar="FILE", help="picture to encode (default: an embedded one)")
    parser.add_argument("--n-prompt", type=int, default=512, metavar="N", help="tokens prefilled (default: 512)")
    parser.add_argument("--n-gen", type=int, default=32, metavar="N", help="tokens decoded behind them (default: 32)")
    parser.add_argument("-r", "--repetitions", type=int, default=3, metavar="N", help="default: 3")
    options.add_running(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    for name, most in MOST.items():
        if not 1 <= getattr(args, name) <= most:
            expected = f"expected a whole number from 1 to {most}"
            raise ParameterError(f"--{name.replace('_', '-')}", str(getattr(args, name)), expected)
    text, mmproj = options.pair(args)
    if args.image is not None and mmproj is None:
        raise ParameterError("--image", str(args.image), "needs --mmproj, to be encoded")
    workload = Workload(None if mmproj is None else args.image or _picture(), args.n_prompt, args.n_gen)
    n_threads = _threads(args)
    with closing(_machine(args.device, n_threads)) as machine:
        found = measure(lambda: options.load_model(args, text, mmproj), workload, args.repetitions, machine)
    figures = found.figures() | {"n_threads": n_threads, "model": str(text)}
    if args.json:
        print_json(figures)
    else:
        _print(found, figures)
    return 0


def _picture() -> Path:
    """Return the first of the pictures that come with the package."""
    first = json.loads((PICTURES / "pictures.json").read_text())[0]
    return PICTURES / str(first["file"])


def _machine(device: str, threads: int) -> Machine:
    return CudaDevice() if device == "cuda" else Host(threads)


def _threads(args: argparse.Namespace) -> int:
    """Return the most threads that a pass may use. Raises ParameterError for a backend or device that is absent."""
    get_ops(args.backend, args.device, args.threads, 0)  # loads torch, if at all, with threads that sleep
    if args.threads is not None:
        return int(args.threads)
    if args.backend == "numpy":
        return min(processors(), blas()[1])
    from ..ops.torch_ops import MOST

    return MOST


def _print(found: Measurement, figures: dict[str, Any]) -> None:
    """Print a row for every stage, and lines about the machine."""
    w = found.workload
    print(f"{'stage':12}{'median':>10}                {'least .. most':>20}  processors")
    _row("load", found.loads.seconds("load"), found.loads.processors("load"))
    for stage, n in ("preprocess", 0), ("encode", 0), ("prefill", w.n_prompt), ("decode", w.n_gen):
        if seconds := found.passes.seconds(stage):
            _row(stage, seconds, found.passes.processors(stage), n)
    print(f"{'read':12}{figures['read_gb_s']:10.4g} {'GB/s':14} {_spread(found.read_gb_s):>20}")
    share = f"{figures['floor_share']:.1%} of the {found.floor_tok_s:.4g} tokens/s that memory allows"
    print(f"\ndecode: {share} ({found.floor_bytes:,} bytes a token)")
    memory = "" if found.device_memory_mb is None else f", {found.device_memory_mb:,.0f} MB of the device's"
    rss = "unknown" if found.peak_rss_mb is None else f"{found.peak_rss_mb:,.0f} MB"
    print(f"memory: {rss} at most{memory}; first pass {found.first_pass_s:.3g} s")
    settings = ", ".join(str(figures[name]) for name in ("backend", "device", "precision", "profile"))
    print(visible(f"{figures['model']}: {settings}, at most {figures['n_threads']} threads"))
    print(_noise(found))


def _row(stage: str, seconds: Sequence[float], processors: float | None, n: int = 0) -> None:
    """Print the median and the spread of a stage: seconds, or tokens a second where it runs n tokens."""
    values = sorted(n / s for s in seconds) if n else sorted(seconds)
    unit = f"tokens/s ({n})" if n else "s"
    middle = (values[len(values) // 2] + values[(len(values) - 1) // 2]) / 2
    print(f"{stage:12}{middle:10.4g} {unit:14} {_spread(values):>20}  {processors or 0:10.2f}")


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):.4g} .. {max(values):.4g}"


def _noise(found: Measurement) -> str:
    """Say how busy others kept the machine, and what that changed."""
    passes = found.passes
    if passes.others is None:
        return "other load: unknown on this system"
    counted = f"{passes.n_refused} noisy repetitions left out" if passes.n_refused else "no repetition left out"
    if passes.n_noisy:
        counted += f", {passes.n_noisy} of {len(passes.kept)} counted though noisy: speeds are too low"
    return f"other load: at most {passes.others:.2f} processors ({QUIET:.0%} of the machine's is noisy); {counted}"
