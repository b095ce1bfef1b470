"""Find this project's stages in transformers' LLaVA.

N patches, T positions, D width, H heads, dh head size, V vocabulary. `llava_ref.models.stages` has the table. Q and K
come with the channels of a head in halves, and are put back into GGUF's adjacent pairs.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .model import HfModel
from .points import Point, given, made, tower_block, weights


def tower(model: HfModel) -> Iterator[Point]:
    clip, projector = model.module.model.vision_tower, model.module.model.multi_modal_projector
    yield given("vision.pixels", clip)
    yield made("vision.patch_embd", clip.embeddings.patch_embedding, lambda x: x.flatten(1).T)  # (D, y, x) -> (N, D)
    yield made("vision.pos_embd", clip.embeddings)
    yield made("vision.pre_ln", clip.pre_layrnorm)
    for i, layer in enumerate(clip.encoder.layers):
        yield from tower_block(f"vision.blk.{i}", layer)
    yield given("vision.features", projector)
    yield made("projector.mm_0", projector.linear_1)
    yield given("projector.gelu", projector.linear_2)
    yield made("projector.out", projector)


def decoder(model: HfModel) -> Iterator[Point]:
    rotary = model.decoder.rotary_emb
    return layers(model, lambda name, layer: looking_back(name, layer.self_attn, rotary))


def layers(model: HfModel, attention: Callable[[str, Any], Iterator[Point]]) -> Iterator[Point]:
    """Show a decoder of llama's layers; `attention`: from Q to the result of a layer's attention."""
    text, V = model.decoder, model.n_vocab
    yield given("embd", text.layers[0])
    for i, layer in enumerate(text.layers):
        name = f"blk.{i}"
        yield made(f"{name}.attn_norm", layer.input_layernorm)
        yield from attention(name, layer)
        yield given(f"{name}.ffn_inp", layer.post_attention_layernorm)
        yield made(f"{name}.ffn_norm", layer.post_attention_layernorm)
        yield made(f"{name}.ffn_gate", layer.mlp.gate_proj)
        yield made(f"{name}.ffn_up", layer.mlp.up_proj)
        yield given(f"{name}.ffn_swiglu", layer.mlp.down_proj)
        yield made(f"{name}.ffn_out", layer.mlp.down_proj)
        yield made(f"{name}.out", layer)
    yield made("result_norm", text.norm)
    yield made("result_output", model.module.lm_head, lambda x: x[:, :V])


def looking_back(name: str, attention: Any, rotary: Any) -> Iterator[Point]:
    """Show the attention of a layer of llama."""
    yield from _queries_and_keys(name, attention, rotary)
    yield from values_and_result(name, attention)


def values_and_result(name: str, attention: Any) -> Iterator[Point]:
    yield made(f"{name}.Vcur", attention.v_proj)
    yield weights(f"{name}.kq_soft_max", attention)
    yield given(f"{name}.kqv_out", attention.o_proj)
    yield made(f"{name}.attn_out", attention.o_proj)


def _queries_and_keys(name: str, attention: Any, rotary: Any) -> Iterator[Point]:
    """Show Q and K before and after rope. No module's output is the turned ones, so the function that the attention
    calls turns the projection once more, by the angles of the model's own module."""
    turn = import_module(type(attention).__module__).apply_rotary_pos_emb
    size = attention.head_dim

    def turned(x: Tensor) -> Tensor:  # (T, H * dh) -> (T, H, dh)
        heads = x.reshape(1, len(x), -1, size).transpose(1, 2)
        cos, sin = rotary(heads, torch.arange(len(x))[None])
        both: Tensor = turn(heads, heads, cos, sin)[0][0]
        return adjacent_pairs(both.transpose(0, 1).reshape(x.shape), size).reshape(len(x), -1, size)

    for part, projection in (("Qcur", attention.q_proj), ("Kcur", attention.k_proj)):
        yield made(f"{name}.{part}", projection, lambda x: adjacent_pairs(x, size))
        yield made(f"{name}.{part}_rope", projection, turned)


def adjacent_pairs(x: Tensor, size: int) -> Tensor:
    """Reorder the channels of x (T, H * dh), heads of `size`: i and i + dh / 2 turn together in transformers, 2i and
    2i + 1 in a GGUF file."""
    halves = x.reshape(len(x), -1, 2, size // 2)  # (T, H, 2, dh / 2)
    return halves.transpose(2, 3).reshape(x.shape)
