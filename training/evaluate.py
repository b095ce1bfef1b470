"""Measure the share of fresh questions answered exactly, by kind, with weights rounded as in the files (Q8_0, F16).

python -m training.evaluate CHECKPOINT.pt VOCABULARY.gguf [N] [SEED ...]
"""

import sys
from collections import Counter

import gguf
import numpy as np
import torch
from torch import Tensor

from llava_ref.scenes import Question, fresh_questions

from .data import to_model_size
from .export import q8_0, text_tensors, vision_tensors
from .model import ShapesConfig, ShapesModel
from .packing import Packer, columns, make_packer


def rounded(state: dict[str, Tensor], c: ShapesConfig) -> dict[str, Tensor]:
    """Round the weights as the files' formats do."""
    halves = {t.data_ptr() for n, t in vision_tensors(state, c).items() if t.ndim > 1 and "position" not in n}
    blocks = {t.data_ptr() for t in text_tensors(state, c).values() if t.ndim > 1}
    out = {}
    for name, t in state.items():
        if t.data_ptr() in halves:
            t = t.half().float()
        elif t.data_ptr() in blocks:
            t = torch.from_numpy(gguf.quants.dequantize(q8_0(t), gguf.GGMLQuantizationType.Q8_0))
        out[name] = t
    return out


@torch.no_grad()
def answers_right(model: ShapesModel, packer: Packer, pixels: list[np.ndarray], asked: list[Question]) -> list[bool]:
    """Say for each question whether greedy decoding gives its answer: every token and the end are the most likely."""
    hidden = model.tower(torch.from_numpy(np.stack(pixels)))
    out = []
    for i, q in enumerate(asked):
        row = columns([packer.one(q)])
        inputs = (row[key] for key in ("ids", "patches", "positions", "segments", "where"))
        logits = model.answer_logits(hidden[i : i + 1], *inputs)
        out.append(bool((logits.argmax(-1) == row["answers"]).all()))
    return out


def evaluate(model: ShapesModel, packer: Packer, n: int, seed: int) -> dict[str, tuple[int, int]]:
    """Count right answers and questions: kind -> (right, asked)."""
    asked, right = Counter[str](), Counter[str]()
    stream = list(fresh_questions(n, seed))
    for start in range(0, n, 50):
        block = stream[start : start + 50]
        pixels = [to_model_size(image) for image, _ in block]
        for (_, q), ok in zip(block, answers_right(model, packer, pixels, [q for _, q in block]), strict=True):
            for key in (q.kind, "all"):
                asked[key] += 1
                right[key] += ok
    return {kind: (right[kind], asked[kind]) for kind in sorted(asked)}


def main() -> None:
    """Print the shares for each seed."""
    checkpoint, vocabulary, n, *seeds = sys.argv[1:] if len(sys.argv) > 3 else [*sys.argv[1:3], "500"]
    torch.set_num_threads(1)
    packer = make_packer(vocabulary)
    model = ShapesModel(ShapesConfig())
    model.load_state_dict(rounded(torch.load(checkpoint)["model"], ShapesConfig()))
    for seed in map(int, seeds or [0, 1]):
        for kind, (right, asked) in evaluate(model, packer, int(n), seed).items():
            print(f"seed {seed}  {kind:8} {right:4} of {asked:4}  {right / asked:.1%}")


if __name__ == "__main__":
    main()
