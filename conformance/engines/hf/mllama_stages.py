"""Find this project's stages in transformers' Mllama.

n pictures, K tiles at most, N patches and L rows of a tile, R rows of a picture with its padding, T positions, H heads,
dh head size. The rows of a picture are those of its tiles, and then the padding of each; transformers has each tile's
padding behind the tile.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .llava_stages import layers, looking_back
from .mllama_prompt import canvas
from .model import HfModel
from .points import Point, block, given, made


def tower(model: HfModel) -> Iterator[Point]:
    vision, c = model.module.model.vision_model, model.vision
    assert c is not None
    K, L = c.config["max_num_tiles"], c.n_patches + 1
    order = _order(K, L)

    def canvases(inputs: Any, output: Any) -> list[Tensor]:
        numbers = model.passed["aspect_ratio_ids"][0]
        return [canvas(tiles, int(number), c) for tiles, number in zip(inputs[0][0], numbers, strict=True)]

    yield Point("vision.pixels", vision, canvases, lambda x: x)
    yield Point("vision.patch_embd", vision.patch_embedding, lambda inputs, x: x.flatten(2).unflatten(0, (-1, K)),
                lambda x: x.transpose(1, 2).flatten(0, 1))  # fmt: skip
    yield made("vision.pre_tile_embd", vision.pre_tile_positional_embedding, _rows)
    yield made("vision.pos_embd", vision.gated_positional_embedding, _rows)
    yield made("vision.pre_ln", vision.layernorm_pre, _rows)
    for i, layer in enumerate(vision.transformer.layers):
        yield from _tower_block(f"vision.blk.{i}", layer, order)
    yield made("vision.post_ln", vision.layernorm_post, lambda x: x[order])
    yield made("vision.post_tile_embd", vision.post_tile_positional_embedding, lambda x: _rows(x)[order])
    for i, layer in enumerate(vision.global_transformer.layers):
        yield from _tower_block(f"vision.global.blk.{i}", layer, order)
    projector = model.module.model.multi_modal_projector
    yield Point("vision.features", projector, lambda inputs, output: inputs[0][0], _rows)
    yield Point("projector.out", projector, lambda inputs, output: output[0], _rows)


def _rows(x: Tensor) -> Tensor:
    """(K, L, D) -> (K * L, D)"""
    return x.flatten(0, 1)


def _order(K: int, L: int) -> Tensor:
    """Return which of transformers' rows stand first, second, ...  -> (R,)"""
    padded = -(-L // 8) * 8
    number = torch.arange(K * padded).reshape(K, padded)
    return torch.cat([number[:, :L].flatten(), number[:, L:].flatten()])


def _tower_block(name: str, layer: Any, order: Tensor) -> Iterator[Point]:
    attention, norms = layer.self_attn, (layer.input_layernorm, layer.post_attention_layernorm)
    for point in block(name, layer, attention, attention.o_proj, norms):
        both = point.name.endswith("kq_soft_max")  # queries and keys, (H, R, R)
        yield replace(point, change=(lambda x: x[:, order][:, :, order]) if both else (lambda x: x[order]))


def decoder(model: HfModel) -> Iterator[Point]:
    rotary = model.decoder.rotary_emb

    def attention(name: str, layer: Any) -> Iterator[Point]:
        if hasattr(layer, "cross_attn"):
            return _looking(name, layer.cross_attn, model)
        return looking_back(name, layer.self_attn, rotary)

    return layers(model, attention)


def _looking(name: str, attention: Any, model: HfModel) -> Iterator[Point]:
    """Show the attention of a layer that looks at pictures: its keys and values are of their states, in order."""

    def states(inputs: Any, output: Tensor) -> Tensor:  # of the tiles one by one -> (1, states, ...)
        return output.reshape(1, -1, output.shape[-1])

    def by_place(x: Tensor) -> Tensor:  # (H, T, states): those that are seen first
        mask = model.passed["aspect_ratio_mask"].flatten()
        tile = torch.arange(len(mask)).repeat_interleave(x.shape[2] // len(mask))
        return x[:, :, torch.cat([torch.nonzero(mask[tile] == seen).flatten() for seen in (1, 0)])]

    yield made(f"{name}.Qcur", attention.q_proj)
    yield Point(f"{name}.Kcur", attention.k_proj, states, lambda x: x)
    yield Point(f"{name}.Vcur", attention.v_proj, states, lambda x: x)
    yield made(f"{name}.Qcur_normed", attention.q_norm, lambda x: x.transpose(0, 1))
    yield made(f"{name}.Kcur_normed", attention.k_norm, lambda x: x.transpose(0, 1))
    yield Point(f"{name}.kq_soft_max", attention, lambda inputs, output: output[1], by_place)
    yield given(f"{name}.kqv_out", attention.o_proj)
    yield made(f"{name}.attn_out", attention.o_proj)
