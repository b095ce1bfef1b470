"""Find this project's stages in transformers' Gemma 3.

N patches, n rows of a picture, T positions, D width, H heads, dh head size. Q and K keep transformers' order of
channels (i and i + dh / 2 turn together), which is also the file's.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .model import HfModel
from .points import Point, given, made, tower_block, weights


def tower(model: HfModel) -> Iterator[Point]:
    siglip, projector = model.module.model.vision_tower, model.module.model.multi_modal_projector
    yield given("vision.pixels", siglip)
    yield made("vision.patch_embd", siglip.embeddings.patch_embedding, lambda x: x.flatten(1).T)  # (D, y, x) -> (N, D)
    yield made("vision.pos_embd", siglip.embeddings)
    for i, layer in enumerate(siglip.encoder.layers):
        yield from tower_block(f"vision.blk.{i}", layer)
    yield made("vision.post_ln", siglip.post_layernorm)
    yield given("projector.pool", projector.mm_soft_emb_norm)  # (n, Dv)
    yield made("projector.soft_emb_norm", projector.mm_soft_emb_norm)
    yield made("projector.out", projector)


def decoder(model: HfModel) -> Iterator[Point]:
    text, V = model.decoder, model.n_vocab
    yield given("embd", text.layers[0])
    for i, layer in enumerate(text.layers):
        name, attention = f"blk.{i}", layer.self_attn
        yield made(f"{name}.attn_norm", layer.input_layernorm)
        yield made(f"{name}.Qcur", attention.q_proj)
        yield made(f"{name}.Kcur", attention.k_proj)
        yield made(f"{name}.Vcur", attention.v_proj)
        yield from _queries_and_keys(name, attention, text.rotary_emb)
        yield weights(f"{name}.kq_soft_max", attention)
        yield given(f"{name}.kqv_out", attention.o_proj)
        yield made(f"{name}.attn_out", attention.o_proj)
        yield made(f"{name}.attn_post_norm", layer.post_attention_layernorm)
        yield given(f"{name}.ffn_inp", layer.pre_feedforward_layernorm)
        yield made(f"{name}.ffn_norm", layer.pre_feedforward_layernorm)
        yield made(f"{name}.ffn_gate", layer.mlp.gate_proj)
        yield made(f"{name}.ffn_up", layer.mlp.up_proj)
        yield given(f"{name}.ffn_geglu", layer.mlp.down_proj)
        yield made(f"{name}.ffn_out", layer.mlp.down_proj)
        yield made(f"{name}.ffn_post_norm", layer.post_feedforward_layernorm)
        yield made(f"{name}.out", layer)
    yield made("result_norm", text.norm)
    yield made("result_output", model.module.lm_head, lambda x: x[:, :V])


def _queries_and_keys(name: str, attention: Any, rotary: Any) -> Iterator[Point]:
    """Show Q and K after their norms and after rope, both (T, H, dh). No module's output is the turned ones,
    so the function that the attention calls turns them once more, by the angles of the model's own module."""
    turn = import_module(type(attention).__module__).apply_rotary_pos_emb

    def turned(heads: Tensor) -> Tensor:  # (H, T, dh) -> (T, H, dh)
        cos, sin = rotary(heads[None], torch.arange(heads.shape[1])[None], attention.layer_type)
        both: Tensor = turn(heads[None], heads[None], cos, sin)[0][0]
        return both.transpose(0, 1)

    for part, norm in (("Qcur", attention.q_norm), ("Kcur", attention.k_norm)):
        yield made(f"{name}.{part}_normed", norm, lambda x: x.transpose(0, 1))
        yield made(f"{name}.{part}_rope", norm, turned)
