"""Share of fresh questions answered exactly, by kind, with the weights as the files store them (Q8_0 and F16).

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
from .model import Model, Size
from .packing import Packer, columns, make_packer


def rounded(state: dict[str, Tensor], c: Size) -> dict[str, Tensor]:
    """The state after a trip through the files' formats."""
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
def answered(model: Model, packer: Packer, pixels: list[np.ndarray], asked: list[Question]) -> list[bool]:
    """Whether each token of each answer, its end included, is the likeliest: what greedy decoding would say."""
    hidden = model.tower(torch.from_numpy(np.stack(pixels)))
    out = []
    for i, q in enumerate(asked):
        p = columns([packer.one(q)])
        inputs = (p[key] for key in ("ids", "patches", "positions", "segments", "where"))
        logits = model.answer_logits(hidden[i : i + 1], *inputs)
        out.append(bool((logits.argmax(-1) == p["answers"]).all()))
    return out


def evaluate(model: Model, packer: Packer, n: int, seed: int) -> dict[str, tuple[int, int]]:
    """Kind -> (right, asked)."""
    asked, right = Counter[str](), Counter[str]()
    stream = list(fresh_questions(n, seed))
    for at in range(0, n, 50):
        some = stream[at : at + 50]
        pixels = [to_model_size(image) for image, _ in some]
        for (_, q), ok in zip(some, answered(model, packer, pixels, [q for _, q in some]), strict=True):
            for key in (q.kind, "all"):
                asked[key] += 1
                right[key] += ok
    return {kind: (right[kind], asked[kind]) for kind in sorted(asked)}


def main() -> None:
    checkpoint, vocabulary, n, *seeds = sys.argv[1:] if len(sys.argv) > 3 else [*sys.argv[1:3], "500"]
    torch.set_num_threads(1)
    packer = make_packer(vocabulary)
    model = Model(Size())
    model.load_state_dict(rounded(torch.load(checkpoint)["model"], Size()))
    for seed in map(int, seeds or [0, 1]):
        for kind, (right, asked) in evaluate(model, packer, int(n), seed).items():
            print(f"seed {seed}  {kind:8} {right:4} of {asked:4}  {right / asked:.1%}")


if __name__ == "__main__":
    main()
