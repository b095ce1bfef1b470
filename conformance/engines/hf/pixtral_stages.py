"""Find this project's stages in transformers' Pixtral and Mistral Small 3.1.

The tower has the patches of all pictures in one sequence; here they are taken apart, row by row each. n patches of all
pictures, H heads, dh head size.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .llava_stages import adjacent_pairs, decoder
from .model import HfModel
from .points import Point, given, made, weights

__all__ = ["decoder", "tower"]


class PatchesOfPictures:
    """Cut the patches of all pictures into pictures, by the sizes of the pass that runs."""

    def __init__(self, model: HfModel) -> None:
        assert model.vision is not None
        self._model, self._patch = model, model.vision.config["patch_size"]

    @property
    def _sizes(self) -> list[tuple[int, int]]:
        return [(y, x) for y, x in self._model.passed["image_sizes"].tolist()]

    def cropped(self, x: Tensor, side: int = 1) -> list[Tensor]:
        """Return what a picture has of (pictures, D, Y, X), `side` pixels to a number."""
        return [
            part[:, : height // side, : width // side] for part, (height, width) in zip(x, self._sizes, strict=True)
        ]

    def patches(self, x: Tensor) -> list[Tensor]:  # the convolution's
        return [part.flatten(1).T for part in self.cropped(x, self._patch)]

    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return each picture's part of what has a row for each patch, or for each square of patches."""
        x = x.reshape(-1, x.shape[-1])
        counts = [height * width for height, width in self._sizes]
        return torch.split(x, [count * len(x) // sum(counts) for count in counts])

    def squares(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return each picture's part of attention weights (1, H, n, n)."""
        ends = torch.tensor([y * x_ // self._patch**2 for y, x_ in self._sizes]).cumsum(0).tolist()
        return tuple(x[0, :, a:b, a:b] for a, b in zip([0, *ends], ends, strict=False))


def tower(model: HfModel) -> Iterator[Point]:
    pixtral, projector = model.module.model.vision_tower, model.module.model.multi_modal_projector
    pictures = PatchesOfPictures(model)
    yield _cut(given("vision.pixels", pixtral), pictures.cropped)
    yield _cut(made("vision.patch_embd", pixtral.patch_conv), pictures.patches)
    yield _cut(made("vision.pre_ln", pixtral.ln_pre), pictures.cut)
    for i, layer in enumerate(pixtral.transformer.layers):
        for point in _block(f"vision.blk.{i}", layer):
            yield _cut(point, pictures.squares if point.name.endswith("kq_soft_max") else pictures.cut)
    if model.family == "mistral3":
        yield _cut(made("projector.input_norm", projector.norm), pictures.cut)
        yield _cut(given("projector.shuffle", projector.patch_merger.merging_layer), pictures.cut)
        yield _cut(made("projector.merger", projector.patch_merger), pictures.cut)
    yield _cut(made("projector.mm_1", projector.linear_1), pictures.cut)
    yield _cut(given("projector.gelu", projector.linear_2), pictures.cut)
    yield _cut(made("projector.out", projector), pictures.cut)


def _cut(point: Point, cut: Callable[[Any], Any]) -> Point:
    """Show each picture's part of a stage."""

    def pick(inputs: Any, output: Any) -> Any:
        return [point.change(part) for part in cut(point.pick(inputs, output))]

    return Point(point.name, point.module, pick, lambda x: x)


def _block(name: str, layer: Any) -> Iterator[Point]:
    attention, mlp = layer.attention, layer.feed_forward
    yield made(f"{name}.layer_inp_normed", layer.attention_norm)
    for part, projection in (("Qcur", attention.q_proj), ("Kcur", attention.k_proj)):
        yield made(f"{name}.{part}", projection, lambda x: adjacent_pairs(x, attention.head_dim))
        yield _turned(f"{name}.{part}_rope", attention, projection)
    yield made(f"{name}.Vcur", attention.v_proj)
    yield weights(f"{name}.kq_soft_max", attention)
    yield given(f"{name}.kqv_out", attention.o_proj)
    yield made(f"{name}.attn_out", attention.o_proj)
    yield given(f"{name}.ffn_inp", layer.ffn_norm)
    yield made(f"{name}.ffn_inp_normed", layer.ffn_norm)
    yield made(f"{name}.ffn_gate", mlp.gate_proj)
    yield made(f"{name}.ffn_up", mlp.up_proj)
    yield given(f"{name}.ffn_act", mlp.down_proj)
    yield made(f"{name}.ffn_out", mlp.down_proj)
    yield made(f"{name}.layer_out", layer)


def _turned(name: str, attention: Any, projection: Any) -> Point:
    """Show Q or K after rope, (n, H, dh): no module's output, so the function that the attention calls turns the
    projection once more, by the angles that it was given."""
    size = attention.head_dim
    turn: Any = import_module(type(attention).__module__).apply_rotary_pos_emb

    def turned(inputs: Any, output: Any) -> Tensor:
        x: Tensor = projection(next(given for given in inputs if isinstance(given, Tensor)))
        cos, sin = next(given for given in inputs if isinstance(given, tuple))
        heads = x.reshape(*x.shape[:2], -1, size).transpose(1, 2)
        both: Tensor = turn(heads, heads, cos, sin, unsqueeze_dim=0)[0]
        return both.transpose(1, 2).reshape(x.shape)

    return Point(name, attention, turned, lambda x: adjacent_pairs(x, size).reshape(len(x), -1, size))
