"""Questions about whole models: a step, a prompt, a picture, and whether kernels may start before their turn."""

import gc
from collections.abc import Iterator
from functools import partial
from typing import cast

import numpy as np
import torch

from ...generation.session import Session
from ...models.family import encode
from ...models.llama import Llama
from ...ops.protocol import Ops
from ..floor import bytes_of_token
from . import models
from .questions import Card
from .timing import Row, answered

TIMES = 10  # passes over a prompt or a picture
TOKENS = 64  # steps timed one by one
PREFILLED, DEPENDENT = ("Q4_K_M", "F16"), "Q4_K_M"


def steps(card: Card) -> Iterator[Row]:
    """Ask how fast a token is decoded behind a context, in three mixes of weight types."""
    for mix in models.MIXES:
        yield answered("step", mix, partial(_step, card, mix))


def _ops(card: Card, dependent_launch: bool = False) -> Ops:
    """Return the fast operations, with as much memory for float16 copies as half of what is free."""
    from ...ops.cuda.ops import CudaOps

    gc.collect()
    budget = 1 << 30
    if card.device == "cuda":
        torch.cuda.empty_cache()
        budget = torch.cuda.mem_get_info()[0] // 2
    return cast(Ops, CudaOps(card.device, None, budget, dependent_launch))


def _ids(card: Card, n: int) -> list[int]:
    found: list[int] = np.random.default_rng(0).integers(0, card.sizes.vocabulary, n).tolist()
    return found


def _behind_context(card: Card, text: Llama, more: int) -> Session:
    """Return a sequence of `context` positions, with room for more."""
    session = Session(text, card.sizes.context + more)
    session.feed([_ids(card, card.sizes.context)])
    return session


def _step(card: Card, mix: str) -> Row:
    text, s = models.decoder(card.sizes, models.MIXES[mix], _ops(card)), card.sizes
    session = _behind_context(card, text, TOKENS + 2)
    seconds = card.timer.wall(lambda: np.asarray(session.next([[1]])), TOKENS)
    n_bytes = bytes_of_token(text.step_plan(), s.context + TOKENS // 2)
    return Row("step", f"{mix}, {s.context} before", seconds, n_bytes, n_tokens=1)


def prompts(card: Card) -> Iterator[Row]:
    """Ask how fast a prompt is prefilled."""
    for mix in PREFILLED:
        yield answered("prefill", mix, partial(_prompt, card, mix))


def _prompt(card: Card, mix: str) -> Row:
    text, s = models.decoder(card.sizes, models.MIXES[mix], _ops(card)), card.sizes
    ids = _ids(card, s.prompt)
    seconds = card.timer.wall(lambda: Session(text, s.prompt).feed([ids]), TIMES)
    products = s.layers * (4 * s.width * s.heads * s.head_size + 3 * s.width * s.mlp) * s.prompt
    return Row("prefill", f"{mix}, {s.prompt} rows", seconds, n_flops=2 * products, n_tokens=s.prompt)


def picture(card: Card) -> Iterator[Row]:
    """Ask how fast a picture is encoded."""
    yield answered("picture", "tower and projector", partial(_picture, card))


def _picture(card: Card) -> Row:
    s, clip = card.sizes, models.tower(card.sizes, _ops(card))
    n, D, F = (s.image // s.patch) ** 2, s.vision_width, s.vision_mlp
    pixels = np.zeros((1, 3, s.image, s.image), np.float32)
    seconds = card.timer.wall(lambda: encode(clip, pixels), TIMES)
    layers = s.vision_layers * (4 * D * D + 2 * D * F) * (n + 1)
    flops = 2 * (layers + n * (3 * s.patch**2 * D + s.width * (D + s.width)))
    return Row("picture", f"{n} patches, {s.vision_layers} layers, projector", seconds, n_flops=flops)


def dependent_launch(card: Card) -> Iterator[Row]:
    """Ask what programmatic dependent launch brings, and whether the same steps give the same bits with it."""
    yield answered("dependent launch", DEPENDENT, partial(_dependent, card))


def _dependent(card: Card) -> Row:
    found, times = [], []
    for on in False, True:
        text = models.decoder(card.sizes, models.MIXES[DEPENDENT], _ops(card, on))
        session = _behind_context(card, text, TOKENS + card.sizes.steps + 2)
        ids = _ids(card, card.sizes.steps)
        found.append(np.stack([np.array(session.next([[token]])) for token in ids]))
        times.append(card.timer.wall(partial(session.next, [[1]]), TOKENS))
        del text, session
    differing = int((found[0] != found[1]).any(1).sum())
    same = "the same bits" if not differing else f"**{differing} of {len(found[0])} steps differ**"
    note = f"{times[0] * 1e6:.1f} µs without; {card.sizes.steps} steps: {same}"
    return Row("dependent launch", DEPENDENT, times[1], n_tokens=1, note=note)
