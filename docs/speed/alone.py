"""Measure what has no counterpart in `bench`: `python docs/speed/alone.py pictures|sequences FILE [MMPROJ]`.

It prints JSON, a row for each number of pictures, or of sequences.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rival import Sequences

from llava_ref import load
from llava_ref.benchmark.measure import Clocks, Repetition, Repetitions, Stopwatch, repeat
from llava_ref.model import Llava

COUNTS = (1, 2, 4, 8)
STEPS, REPETITIONS = 32, 3
QUESTION = 64
"""Tokens around the pictures."""


def pictures(model: Llava) -> list[dict[str, Any]]:
    """Measure prompts with 1 to 8 pictures: encoded one after the other, then run at once."""
    rng = np.random.default_rng(0)
    question = rng.integers(0, model.tokenizer.n_vocab, QUESTION).tolist()
    pixels = [model.preprocess(model.decode_image(picture)).pixels for picture in _pictures(rng)]

    def run(n: int, watch: Stopwatch) -> None:
        with watch.lap("encode"):
            rows = [model.encode(one) for one in pixels[:n]]
        with watch.lap("prefill"):
            model.session().next([*rows, question])

    rows = []
    for n in COUNTS:
        (found,) = _repeated(partial(run, n))
        positions = n * model.tokens_per_image + QUESTION
        rows.append({"pictures": n, "positions": positions, **_seconds(found, "encode", "prefill")})
    return rows


def sequences(model: Llava, rival: Sequences | None) -> list[dict[str, Any]]:
    """Measure 1 to 8 sequences that share each step, a token of each, from an empty context."""
    ops, plan, c = model.ops, model.text.step_plan(), model.text.config
    if ops.together < max(COUNTS):
        raise SystemExit("error: --precision: sequences do not share steps in this one")

    def run(n: int, watch: Stopwatch) -> None:
        caches = [ops.cache(c.n_layer, c.n_head_kv, c.head_size, 2 * STEPS) for _ in range(n)]
        steppers = [stepper for cache in caches if (stepper := ops.stepper(plan, cache)) is not None]
        with watch.lap("decode"):
            for _ in range(STEPS):
                ops.step_together(steppers, [1] * n)

    rows = []
    for n in COUNTS:
        found = _repeated(partial(run, n), *([] if rival is None else [partial(rival.together, n, STEPS)]))
        speeds = [n * STEPS / (each.median("decode") or 1.0) for each in found]
        row = {"sequences": n, "tok_s": speeds[0], **_seconds(found[0], "decode")}
        rows.append(row | ({} if rival is None else {"reference": {"tok_s": speeds[1]}}))
    return rows


def _repeated(run: Callable[[Stopwatch], None], *rivals: Callable[[], Repetition]) -> list[Repetitions]:
    watch = Stopwatch(Clocks(), lambda: None)

    def own() -> Repetition:
        return watch.repetition(lambda: run(watch))

    for first in (own, *rivals):
        first()
    return repeat([own, *rivals], REPETITIONS, watch.clocks.processors)


def _seconds(found: Repetitions, *stages: str) -> dict[str, Any]:
    seconds = {f"{stage}_s": found.median(stage) for stage in stages}
    return seconds | {"noisy": found.n_noisy, "refused": found.n_refused, "others": found.others}


def _pictures(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.integers(0, 256, (336, 336, 3), np.uint8) for _ in range(max(COUNTS))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("pictures", "sequences"))
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--precision", default="fast")
    parser.add_argument("-t", "--threads", type=int, required=True)
    parser.add_argument("--against", action="store_true", help="sequences of llama.cpp too")
    args = parser.parse_args()
    model = load(*args.files, precision=args.precision, threads=args.threads)
    with ExitStack() as stack:
        rival = stack.enter_context(closing(Sequences(args.files[0], args.threads))) if args.against else None
        if rival is not None:
            rival.load()
        print(json.dumps(pictures(model) if args.what == "pictures" else sequences(model, rival)))


if __name__ == "__main__":
    main()
