"""Chooses the demo's pictures: the first lively ones of an evaluation stream that the exported
pair answers right, one a kind.

python -m training.pictures [--seed 0] [--out llava_ref/assets/pictures]
"""

import argparse
import json
from pathlib import Path

import llava_ref
from llava_ref.scenes import Question, fresh_scene, questions

KINDS = ("colour", "count", "word", "where", "digit", "what at", "shape", "caption")  # in the order shown
MAX_SEEN = 400  # pictures to look through
MIN_THINGS = 3


def _file(kind: str) -> str:
    return kind.replace(" ", "-") + ".png"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path("llava_ref/assets/pictures"))
    args = options.parse_args()
    args.out.mkdir(exist_ok=True)
    model = llava_ref.load(*llava_ref.embedded())
    chosen: dict[str, Question] = {}
    for index in range(MAX_SEEN):
        scene, rng = fresh_scene(args.seed, index)
        image, question = scene.draw(), questions(scene, rng)[0]
        if question.kind not in KINDS or question.kind in chosen or len(scene.things) < MIN_THINGS:
            continue
        content = [{"type": "image", "image": image}, {"type": "text", "text": question.text}]
        reply = model.chat([{"role": "user", "content": content}], max_tokens=32)
        if reply.text.strip() == question.answer:
            chosen[question.kind] = question
            image.save(args.out / _file(question.kind), optimize=True)
    rows = [
        {"file": _file(kind), "question": chosen[kind].text, "answer": chosen[kind].answer}
        for kind in KINDS
        if kind in chosen
    ]
    (args.out / "pictures.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{len(rows)} pictures in {args.out}")


if __name__ == "__main__":
    main()
