"""`bench`: measure the speed of every stage, beside llama.cpp if asked, and what this machine's memory would allow."""

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from ..benchmark.llama_cpp.library import VARIABLE
from ..benchmark.llama_cpp.process import LlamaProcess
from ..benchmark.machine import CudaDevice, Host, Machine
from ..benchmark.measurement import measure
from ..benchmark.table import agreement, lines
from ..benchmark.workload import Workload
from ..errors import ParameterError
from ..model import Llava
from ..ops import get_ops
from ..ops.threads import blas, processors
from . import options
from .output import note, print_json, verdict
from .parser import Example, Parser

PICTURES = Path(__file__).parents[1] / "assets" / "pictures"
AGAINST = f"the library that {VARIABLE} names, or xllamacpp's; the profile is then llama.cpp unless one is given"
MOST = {"n_prompt": 1 << 20, "n_gen": 1 << 20, "repetitions": 1000}


EXAMPLES: Sequence[Example] = (
    ("llava-ref bench --n-prompt 64", "the speed of every stage, and its share of what the memory would allow"),
    (
        "llava-ref bench -m text.gguf --mmproj mmproj.gguf --against llama.cpp",
        "the same beside llama.cpp, measured in turn",
    ),
)


def add_arguments(parser: Parser) -> None:
    options.add_model(parser)
    options.add_mmproj(parser)
    parser.group("files").add_argument(
        "--image", type=Path, metavar="FILE", help="picture to encode (default: an embedded one)"
    )
    group = parser.group("measurement")
    group.add_argument("--n-prompt", type=int, default=512, metavar="N", help="tokens prefilled (default: 512)")
    group.add_argument("--n-gen", type=int, default=32, metavar="N", help="tokens decoded behind them (default: 32)")
    group.add_argument("-r", "--repetitions", type=int, default=3, metavar="N", help="runs of each (default: 3)")
    group.add_argument("--against", choices=("llama.cpp",), help=f"measure it in turn: {AGAINST}")
    options.add_running(parser)
    parser.set_defaults(profile=None)
    options.add_json(parser, "print one JSON object")


def run(args: argparse.Namespace) -> int:
    text, mmproj = _checked(args)
    args = options.changed(args, profile=args.profile or args.against or "llava")
    workload = Workload(None if mmproj is None else args.image or _picture(), args.n_prompt, args.n_gen)
    n_threads = _threads(args)
    with ExitStack() as stack:
        machine = stack.enter_context(closing(_machine(args.device, n_threads)))
        reference = (
            stack.enter_context(closing(_llama_cpp(workload, text, mmproj, n_threads))) if args.against else None
        )

        def load() -> Llava:
            return options.load_model(args, text, mmproj)

        found = measure(load, workload, args.repetitions, machine, reference=reference)
    figures = found.figures() | {"n_threads": n_threads, "model": str(text)}
    if reference is not None:
        figures["reference"]["n_threads"] = n_threads
    if args.json:
        print_json(figures)
    else:
        print(*lines(found, figures), sep="\n")
        if reference is not None:
            print(verdict(*agreement(figures, workload.n_gen)))
    return 0


def _checked(args: argparse.Namespace) -> tuple[Path, Path | None]:
    """Return the files. Raises ParameterError for options that are out of range or do not go together."""
    for name, most in MOST.items():
        if not 1 <= getattr(args, name) <= most:
            expected = f"expected a whole number from 1 to {most}"
            raise ParameterError(f"--{name.replace('_', '-')}", str(getattr(args, name)), expected)
    text, mmproj = options.pair(args)
    if args.image is not None and mmproj is None:
        raise ParameterError("--image", str(args.image), "needs --mmproj, to be encoded")
    if args.against and args.device != "cpu":
        raise ParameterError("--against", args.against, f"is measured on the processor, not on --device {args.device}")
    assert text is not None
    return text, mmproj


def _llama_cpp(w: Workload, text: Path, mmproj: Path | None, threads: int) -> LlamaProcess:
    found = LlamaProcess(text, mmproj, w.image, w.n_prompt, w.n_gen, threads)
    if found.wheel:
        note(f"llama.cpp: xllamacpp's, which has no AVX-512 code: a native build, named by {VARIABLE}, is faster")
    return found


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
