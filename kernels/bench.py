"""Measure a CUDA card: `python -m llava_ref.kernels.bench [-o FILE.json] [--only QUESTION]`, in under eight minutes.

It first tests every kernel, then times kernels, whole models of LLaVA-1.5-7B's sizes with random weights, and other
engines that are installed. It prints a Markdown table, and as the last line everything as JSON. Without a card it says
so and exits with 2. docs/bench.md says what each question asks.
"""

import argparse
import sys
from collections.abc import Sequence

from llava_ref.benchmark.card.report import measured, missing, write


def main(argv: Sequence[str] | None = None) -> int:
    """Run all questions, or one in this process; return the exit code."""
    parser = argparse.ArgumentParser("python -m llava_ref.kernels.bench", allow_abbrev=False)
    parser.add_argument("-o", "--output", metavar="FILE.json", help="write the JSON to a file too")
    parser.add_argument("--only", metavar="QUESTION", help="ask one question, here, and print its rows as JSON")
    args = parser.parse_args(argv)
    if (reason := missing()) is not None:
        print(f"error: bench: device: {reason}", file=sys.stderr)
        return 2
    if args.only is not None:
        return only(args.only)
    write(measured(), args.output)
    return 0


def only(name: str) -> int:
    """Answer one question."""
    from llava_ref.benchmark.card.asking import answer
    from llava_ref.benchmark.card.catalogue import QUESTIONS
    from llava_ref.benchmark.card.questions import Card
    from llava_ref.benchmark.card.sizes import LLAVA_7B
    from llava_ref.benchmark.card.timing import CudaTimer

    if name not in QUESTIONS:
        print(f"error: --only: {name!r}: unknown, expected one of {', '.join(QUESTIONS)}", file=sys.stderr)
        return 2
    answer(QUESTIONS[name](Card(CudaTimer(), LLAVA_7B)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
