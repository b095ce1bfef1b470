"""Measure the cost of trace points without probes: decode with them, and with the same source without them.

`python -m llava_ref.conformance.trace_cost` runs the embedded model, or `-m TEXT.gguf`, one token at a time,
alternating between the two builds, and prints the median of the differences in CPU time of the one computing thread. A
second build with trace points runs too, as a control.
"""

import argparse
import ast
import inspect
import random
import statistics
import time
from pathlib import Path
from types import ModuleType

from llava_ref import gguf
from llava_ref.generation.session import Session
from llava_ref.loading import embedded
from llava_ref.models import llama
from llava_ref.ops import get_ops
from llava_ref.profiles import Quirks

WARM_UP = 20


class CutTaps(ast.NodeTransformer):
    """Replaces `tap(name, x)` by x, `scoped(tap, prefix)` by tap, and `attend` by the backend's fused attention."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node.func:
            case ast.Name("tap"):
                return node.args[1]
            case ast.Name("scoped"):
                return node.args[0]
            case ast.Name("attend"):
                attention = ast.Attribute(ast.Name("ops", ast.Load()), "attention", ast.Load())
                return ast.Call(attention, node.args[:4], [])
        return node


def recompiled(module: ModuleType, *, cut: bool) -> ModuleType:
    """Compile a module's source again, with its trace points cut out or left in."""
    tree = ast.parse(inspect.getsource(module))
    if cut:
        tree = ast.fix_missing_locations(CutTaps().visit(tree))
        left = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "tap"]
        assert not left, "a trace point was not cut"
    made = ModuleType(module.__name__)
    made.__package__ = module.__package__
    exec(compile(tree, str(module.__file__), "exec"), made.__dict__)
    return made


def measure(text: Path, backend: str, n_tokens: int) -> tuple[list[float], list[float], list[float]]:
    """Return the seconds per token with trace points, without, and with them in a second build.

    All decode the same positions of the same sequence; the difference of the two equal builds is the noise of the
    measurement."""
    ops, file = get_ops(backend, "cpu", 1, 1 << 32), gguf.read(text)
    builds = [recompiled(llama, cut=cut) for cut in (False, True, False)]
    sessions = [Session(build.Llama.load(file, ops, Quirks())) for build in builds]
    for session in sessions:
        session.feed([[1, 5, 9, 20]])
    times: list[list[float]] = [[] for _ in builds]
    tokens = random.Random(0)
    for _ in range(WARM_UP + n_tokens):
        token = tokens.randrange(10, 200)
        for i in tokens.sample(range(len(builds)), len(builds)):
            began = time.thread_time()
            sessions[i].feed([[token]])
            times[i].append(time.thread_time() - began)
    first, without, second = (seconds[WARM_UP:] for seconds in times)
    return first, without, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", type=Path, default=embedded()[0])
    parser.add_argument("-n", type=int, default=1000, metavar="TOKENS")
    args = parser.parse_args()
    for backend in ("torch", "numpy"):
        first, without, second = measure(args.model, backend, args.n)
        token = statistics.median(without)
        print(f"{backend}: {token * 1e3:.3f} ms a token")
        for label, build, other in (("trace points", first, without), ("the same build twice", first, second)):
            extra = statistics.median(a - b for a, b in zip(build, other, strict=True))
            print(f"  {label}: {extra * 1e6:+.1f} us ({extra / token:+.2%})")


if __name__ == "__main__":
    main()
