"""Find this project's stages in transformers' Qwen2-VL and Qwen2.5-VL, and in Qwen2 for a text file alone.

Rows of a tower are blocks of 2 x 2 patches; blocks are in raster order, in Qwen2.5-VL window by window. The rows that
come out of it are in raster order. n patches of all pictures, T positions, H heads, dh head size.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .llava_stages import layers, values_and_result
from .model import HfModel
from .points import Point, given, made
from .qwen2vl_prompt import Patches


class RowsOfPictures:
    """Cut the rows of all pictures into pictures, by the grids of the pass that runs."""

    def __init__(self, model: HfModel) -> None:
        self._model = model

    @property
    def grids(self) -> Tensor:
        return self._model.passed["image_grid_thw"]

    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return each picture's part of what has a row for each patch, or for each block."""
        counts = self.grids.prod(dim=1)
        return torch.split(x, (counts * len(x) // counts.sum()).tolist())

    def squares(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return each picture's part of attention weights (H, n, n)."""
        ends = [0, *self.grids.prod(dim=1).cumsum(0).tolist()]
        return tuple(x[:, a:b, a:b] for a, b in zip(ends, ends[1:], strict=False))


def tower(model: HfModel) -> Iterator[Point]:
    visual, rows = model.module.model.visual, RowsOfPictures(model)
    assert model.vision is not None
    P = model.vision.config["patch_size"]

    def pixels(inputs: Any, output: Any) -> list[Tensor]:
        pictures = Patches(inputs[0].numpy(), rows.grids.numpy()).pixels(P)
        return [torch.from_numpy(picture) for picture in pictures]

    yield Point("vision.pixels", visual, pixels, _same)
    yield _cut(given("vision.patch_embd", visual.rotary_pos_emb), rows.cut)  # which is shown the rows in their order
    for i, block in enumerate(visual.blocks):
        for point in _tower_block(f"vision.blk.{i}", block):
            yield _cut(point, rows.squares if point.name.endswith("kq_soft_max") else rows.cut)
    merger = visual.merger
    yield _cut(made("vision.post_ln", merger.ln_q), rows.cut)
    yield _cut(made("projector.mm_0", merger.mlp[0]), rows.cut)
    yield _cut(made("projector.gelu", merger.mlp[1]), rows.cut)
    yield Point("projector.out", visual, lambda inputs, output: rows.cut(output.pooler_output), _same)


def _cut(point: Point, cut: Any) -> Point:
    return Point(point.name, point.module, lambda inputs, output: cut(point.pick(inputs, output)), _same)


def _same(x: Tensor) -> Tensor:
    return x


def _tower_block(name: str, block: Any) -> Iterator[Point]:
    attention, mlp = block.attn, block.mlp
    gated = hasattr(mlp, "gate_proj")
    up, down = (mlp.up_proj, mlp.down_proj) if gated else (mlp.fc1, mlp.fc2)
    yield made(f"{name}.layer_inp_normed", block.norm1)
    for i, part in enumerate("QKV"):
        yield Point(f"{name}.{part}cur", attention.qkv, lambda inputs, x, i=i: x.chunk(3, dim=1)[i], _same)  # type: ignore[misc]
    for i, part in enumerate("QK"):
        yield Point(f"{name}.{part}cur_rope", attention, lambda inputs, x, i=i: _turned(attention, inputs)[i], _same)  # type: ignore[misc]
    yield Point(f"{name}.kq_soft_max", attention, lambda inputs, x: _weights(attention, inputs), _same)
    yield given(f"{name}.kqv_out", attention.proj)
    yield made(f"{name}.attn_out", attention.proj)
    yield given(f"{name}.ffn_inp", block.norm2)
    yield made(f"{name}.ffn_inp_normed", block.norm2)
    if gated:
        yield made(f"{name}.ffn_gate", mlp.gate_proj)
    yield made(f"{name}.ffn_up", up)
    yield given(f"{name}.ffn_act", down)
    yield made(f"{name}.ffn_out", down)
    yield made(f"{name}.layer_out", block)


def _turned(attention: Any, inputs: Any) -> tuple[Tensor, Tensor]:
    """Return Q and K after rope, both (n, H, dh): no module's output, so the function that the attention calls turns
    its projections once more, by the angles that it was given."""
    x, _, (cos, sin) = inputs[:3]
    qkv = functional.linear(x, attention.qkv.weight, attention.qkv.bias)
    q, k, _ = qkv.reshape(len(x), 3, attention.num_heads, -1).unbind(1)
    turn: Any = import_module(type(attention).__module__).apply_rotary_pos_emb_vision
    turned: tuple[Tensor, Tensor] = turn(q, k, cos, sin)
    return turned


def _weights(attention: Any, inputs: Any) -> Tensor:
    """Return attention weights (H, n, n), by the function that the attention calls: it keeps none. A patch has no
    weight for one outside its own window, or picture."""
    q, k = (heads.transpose(0, 1)[None] for heads in _turned(attention, inputs))
    eager: Any = import_module(type(attention).__module__).eager_attention_forward
    found, ends = q.new_zeros(q.shape[1], q.shape[2], q.shape[2]), inputs[1].tolist()
    for a, b in zip(ends, ends[1:], strict=False):
        found[:, a:b, a:b] = eager(attention, q[:, :, a:b], k[:, :, a:b], k[:, :, a:b], None, attention.scaling)[1][0]
    return found


def decoder(model: HfModel) -> Iterator[Point]:
    return layers(model, _attention)


def _attention(name: str, layer: Any) -> Iterator[Point]:
    attention = layer.self_attn
    for part, projection in (("Qcur", attention.q_proj), ("Kcur", attention.k_proj)):
        yield made(f"{name}.{part}", projection)
        yield _turned_heads(f"{name}.{part}_rope", attention, projection)
    yield from values_and_result(name, attention)


def _turned_heads(name: str, attention: Any, projection: Any) -> Point:
    """Show Q or K after rope, (T, H, dh), as `_turned` does: `position_embeddings` is the one pair of arguments."""

    def turned(inputs: Any, output: Any) -> Tensor:
        cos, sin = next(given for given in inputs if isinstance(given, tuple))
        x: Tensor = functional.linear(inputs[0], projection.weight, projection.bias)
        heads = x.reshape(*x.shape[:2], -1, attention.head_dim).transpose(1, 2)
        turn: Any = import_module(type(attention).__module__).apply_rotary_pos_emb
        made: Tensor = turn(heads, heads, cos, sin)[0]
        return made.transpose(1, 2)

    return Point(name, attention, turned, _same)
