"""`demo`: run the embedded model on the embedded pictures, or on freshly drawn ones.

assets/pictures/pictures.json is a list of objects with `file`, `question`, `answer` and `caption`.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import ParameterError
from ..generation.answer import Stream
from ..generation.grammar import JsonGrammars
from ..generation.sampling import Sampling
from ..loading import embedded
from ..model import Llava
from ..scenes import WAYS, fresh_asked
from . import options
from .output import in_colour, note, print_json, print_pieces, verdict
from .parser import Example, Parser
from .terminal import draw

MAX_TOKENS = 128  # the longest caption takes fewer
STAGES = ("preprocess_s", "encode_s", "prefill_s", "decode_s")


EXAMPLES: Sequence[Example] = (
    ("llava-ref demo", "each embedded picture with its question and the answer, and how many are right"),
    ("llava-ref demo --eval 100 --seed 7", "the share of 100 freshly drawn questions answered exactly, by kind"),
)


def add_arguments(parser: Parser) -> None:
    parser.group("files").add_argument(
        "--paths", action="store_true", help="print where the files are, as JSON, and stop"
    )
    group = parser.group("question")
    group.add_argument("--eval", type=int, metavar="N", help="ask N fresh questions; print the share answered exactly")
    group.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the fresh questions (default: 0)")
    group.add_argument("--ask", choices=WAYS, default=WAYS[0], help=f"how to ask them (default: {WAYS[0]})")
    options.add_running(parser)
    options.add_json(parser, "print the results as JSON")


def run(args: argparse.Namespace) -> int:
    text, mmproj = embedded()
    pictures = json.loads((text.parent / "pictures" / "pictures.json").read_text())
    if args.paths:
        files = [str(text.parent / "pictures" / entry["file"]) for entry in pictures]
        print_json({"model": str(text), "mmproj": str(mmproj), "images": files})
        return 0
    if args.eval is not None and not 1 <= args.eval <= 1_000_000:
        raise ParameterError("--eval", str(args.eval), "expected a number of questions from 1")
    if args.seed < 0:
        raise ParameterError("--seed", str(args.seed), "expected a whole number from 0")
    model = options.load_model(args, text, mmproj)
    if args.eval is not None:
        return _evaluate(model, args.eval, args.seed, args.ask, args.json)
    return _show(model, text.parent / "pictures", pictures, args.json)


def _ask(model: Llava, picture: Path | Image.Image, question: str) -> Stream:
    request = model.request([options.user_message(question, [picture])])
    return model.answer(request, Sampling(), max_tokens=MAX_TOKENS)


def _show(model: Llava, folder: Path, pictures: list[dict[str, str]], as_json: bool) -> int:
    """Ask about every embedded picture; print its name, the question, the answer, and the time of each stage."""
    results: list[dict[str, Any]] = []
    for entry in pictures:
        stream = _ask(model, folder / entry["file"], entry["question"])
        if as_json:
            stream.finish()
        else:
            _present(folder / entry["file"], entry, stream)
        reply = stream.reply
        results.append({**entry, "text": reply.text, "timings": reply.timings})
    right = sum(result["text"].strip() == result["answer"] for result in results)
    if as_json:
        print_json({"right": right, "n": len(results), "pictures": results} | model.settings)
    else:
        seconds = sum(result["timings"][stage] for result in results for stage in STAGES)
        where = f"{model.settings['backend']}, {model.settings['device']}"
        total = verdict(f"{right} of {len(results)} right", right == len(results))
        print(f"{total}; loaded in {model.load_s:.2f} s, answered in {seconds:.2f} s ({where})")
    return 0


def _present(path: Path, entry: dict[str, str], stream: Stream) -> None:
    print(path.name)
    if in_colour():
        with Image.open(path) as picture:
            print(draw(picture))
    print(f"  question  {entry['question']}\n  answer    ", end="", flush=True)
    print_pieces(stream)
    reply = stream.reply
    times = ", ".join(f"{stage.removesuffix('_s')} {1000 * (reply.timings[stage] or 0):.0f} ms" for stage in STAGES)
    right = reply.text.strip() == entry["answer"]
    mark = "right" if right else f"wrong, expected {entry['answer']}"
    print(f"  {verdict(f'{mark:8}', right)}  {times}\n", flush=True)


def evaluate(model: Llava, n: int, seed: int, way: str) -> tuple[Counter[str], Counter[str]]:
    """Ask `n` fresh questions. Return how many were asked, and answered to the letter, by kind."""
    asked, right = Counter[str](), Counter[str]()
    grammars = JsonGrammars(model.tokenizer)
    for done, one in enumerate(fresh_asked(n, seed, way), 1):
        sampling = Sampling(grammar=None if one.schema is None else grammars.grammar(one.schema))
        reply = model.answer(model.request(one.messages), sampling, max_tokens=MAX_TOKENS).finish()
        asked[one.question.kind] += 1
        right[one.question.kind] += one.right(reply.text)
        if done % 50 == 0 or done == n:
            note(f"{done} of {n} questions, {right.total() / done:.1%} answered exactly")
    return asked, right


def _evaluate(model: Llava, n: int, seed: int, way: str, as_json: bool) -> int:
    """Print the share of fresh questions answered to the letter, by kind."""
    asked, right = evaluate(model, n, seed, way)
    if as_json:
        kinds = {k: {"n": asked[k], "right": right[k], "accuracy": right[k] / asked[k]} for k in sorted(asked)}
        head = {"accuracy": right.total() / n, "n": n, "right": right.total(), "seed": seed, "ask": way}
        print_json({**head, "by_kind": kinds} | model.settings)
    else:
        for kind in sorted(asked):
            print(f"{kind:10} {right[kind]:5} of {asked[kind]:5}  {right[kind] / asked[kind]:7.1%}")
        print(f"{'all':10} {right.total():5} of {n:5}  {right.total() / n:7.1%}  (seed {seed}, {way})")
    return 0
