"""Choose the demo's pictures from an evaluation stream: the first of each kind that the exported pair reads right.

A picture must have at least three things. The pair has to answer its question and to describe it.

python -m training.pictures [--seed 0] [--out llava_ref/assets/pictures]
"""

import argparse
import json
from pathlib import Path

from PIL import Image

import llava_ref
from llava_ref.scenes import fresh_scene, questions
from llava_ref.scenes.questions import CAPTIONS, caption

KINDS = ("colour", "count", "word", "where", "digit", "what at", "shape", "caption")  # in the order shown
LIMIT = 1000  # pictures to try
MIN_THINGS, COUNT = 3, "3"  # things in a picture; the answer to the question of kind "count"


def _file(kind: str) -> str:
    """Return the file name of a kind."""
    return kind.replace(" ", "-") + ".png"


def answer(model: llava_ref.Llava, image: Image.Image, question: str) -> str:
    """Ask a question about a picture."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return model.chat([{"role": "user", "content": content}], max_tokens=64).text.strip()


def main() -> None:
    """Write the pictures and their questions."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path("llava_ref/assets/pictures"))
    args = options.parse_args()
    args.out.mkdir(exist_ok=True)
    model = llava_ref.load(*llava_ref.embedded())
    chosen: dict[str, dict[str, str]] = {}
    for index in range(LIMIT):
        scene, rng = fresh_scene(args.seed, index)
        image, question, shown = scene.draw(), questions(scene, rng)[0], caption(scene)
        kind = question.kind
        if kind not in KINDS or kind in chosen or len(scene.things) < MIN_THINGS:
            continue
        if kind == "count" and question.answer != COUNT:
            continue
        if answer(model, image, question.text) == question.answer and answer(model, image, CAPTIONS[0]) == shown:
            chosen[kind] = {"file": _file(kind), "question": question.text, "answer": question.answer, "caption": shown}
            image.save(args.out / _file(kind), optimize=True)
    rows = [chosen[kind] for kind in KINDS if kind in chosen]
    (args.out / "pictures.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{len(rows)} pictures in {args.out}")


if __name__ == "__main__":
    main()
