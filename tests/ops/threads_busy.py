"""How fast a model answers beside another program, and alone. Not a test: what it prints depends on the machine.

    python -m tests.ops.threads_busy [-m TEXT.gguf] [--busy N] [--tokens N] [--times N] [-- python of another checkout]

Starts `--busy` programs that count (default: 1), then by turns, each in a process of its own, both backends with the
threads that are worth it, with one, and with all; prints the median of `--times` runs: milliseconds a token at a time,
and for a prompt of 256. A command behind `--` is run as one more way, as another version's interpreter with its path.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

WAYS = {"default": "", "one": "1", "all": "0"}


def once(path: Path | None, backend: str, number: str, tokens: int) -> tuple[float, float]:
    """Seconds of a token, and of a prompt, in this process."""
    import os

    import llava_ref

    threads = None if not number else int(number) or os.cpu_count()
    model = llava_ref.load(path or llava_ref.embedded()[0], backend=backend, threads=threads)
    session = model.session()
    session.feed([[1] * 256])
    session.feed([[5]])
    taken = []
    for i in range(tokens):
        began = time.perf_counter()
        session.feed([[5 + i % 50]])
        taken.append(time.perf_counter() - began)
    began = time.perf_counter()
    model.session().feed([[1] * 256])
    return statistics.mean(taken), time.perf_counter() - began


def measured(command: list[str], path: Path | None, backend: str, number: str, tokens: int) -> tuple[float, float]:
    words = [*command, __file__, "--once", backend, number, str(tokens), *([str(path)] if path else [])]
    token, prompt = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    return float(token), float(prompt)


def main() -> None:
    if sys.argv[1:2] == ["--once"]:
        backend, number, tokens, *path = sys.argv[2:]
        print(*once(Path(path[0]) if path else None, backend, number, int(tokens)))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", type=Path)
    parser.add_argument("--busy", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("other", nargs="*")
    args = parser.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
    try:
        for backend in ("torch", "numpy"):
            ways = {name: ([sys.executable], number) for name, number in WAYS.items()}
            ways |= {"other": (args.other, "")} if args.other else {}
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for _ in range(args.times):
                for name, (command, number) in ways.items():
                    found[name].append(measured(command, args.model, backend, number, args.tokens))
            for name, pairs in found.items():
                token, prompt = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
                print(f"{backend:5} {name:7}  {token:8.2f} ms a token  {prompt:8.1f} ms for 256", flush=True)
    finally:
        for process in busy:
            process.kill()


if __name__ == "__main__":
    main()
