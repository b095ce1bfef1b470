"""Forward hooks on transformers' modules -> this project's stages.

N patches, T positions, D width, H heads, dh head size, V vocabulary. A module's output is a stage, or what it is given:
`llava_ref.models.stages` has the table. Q and K come with the channels of a head in halves, and are put back into
GGUF's adjacent pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava_ref.tracing.trace import Probe

from .from_gguf import Model

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Point:
    """Where a stage is seen."""

    name: str
    module: Any
    pick: Callable[[Any, Any], Tensor]  # of what the module was given and gave
    change: Change


class Watch:
    """`with Watch(model, globs) as watch:` one forward pass, then `watch.arrays`: stages by name.

    `globs` as in `llava_ref.tracing.trace.Probe`: attention weights only where a pattern names `kq_soft_max`."""

    def __init__(self, model: Model, globs: Sequence[str]) -> None:
        self._probe, self._model = Probe(globs), model
        self._handles: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}

    def __enter__(self) -> "Watch":
        points = [(False, point) for point in _decoder(self._model)]
        if self._model.vision is not None:
            points += [(True, point) for point in _tower(self._model)]
        for of_pictures, point in points:
            if self._probe.wants(point.name):
                self._handles.append(self._hook(point, of_pictures))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def add(self, name: str, array: np.ndarray) -> None:
        """A stage that no module shows."""
        if self._probe.wants(name.partition("#")[0]):
            self.arrays[name] = array

    def _hook(self, point: Point, of_pictures: bool) -> Any:
        def see(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            batch = point.pick((*args, *kwargs.values()), output)
            for i, x in enumerate(batch if of_pictures else batch[:1]):
                name = f"{point.name}#{i}" if i else point.name
                self.arrays[name] = point.change(x.detach()).float().numpy().copy()

        return point.module.register_forward_hook(see, with_kwargs=True)


def _same(x: Tensor) -> Tensor:
    return x


def _given(name: str, module: Any, change: Change = _same) -> Point:
    return Point(name, module, lambda given, output: given[0], change)


def _made(name: str, module: Any, change: Change = _same) -> Point:
    return Point(name, module, lambda given, output: output[0] if isinstance(output, tuple) else output, change)


def _weights(name: str, attention: Any) -> Point:
    return Point(name, attention, lambda given, output: output[1], _same)  # (H, T, T)


def _tower(model: Model) -> Iterator[Point]:
    tower, projector = model.module.model.vision_tower, model.module.model.multi_modal_projector
    yield _given("vision.pixels", tower)
    yield _made("vision.patch_embd", tower.embeddings.patch_embedding, lambda x: x.flatten(1).T)  # (D, y, x) -> (N, D)
    yield _made("vision.pos_embd", tower.embeddings)
    yield _made("vision.pre_ln", tower.pre_layrnorm)
    for i, layer in enumerate(tower.encoder.layers):
        name, attention = f"vision.blk.{i}", layer.self_attn
        yield _made(f"{name}.layer_inp_normed", layer.layer_norm1)
        yield _made(f"{name}.Qcur", attention.q_proj)
        yield _made(f"{name}.Kcur", attention.k_proj)
        yield _made(f"{name}.Vcur", attention.v_proj)
        yield _weights(f"{name}.kq_soft_max", attention)
        yield _given(f"{name}.kqv_out", attention.out_proj)
        yield _made(f"{name}.attn_out", attention.out_proj)
        yield _given(f"{name}.ffn_inp", layer.layer_norm2)
        yield _made(f"{name}.ffn_inp_normed", layer.layer_norm2)
        yield _made(f"{name}.ffn_up", layer.mlp.fc1)
        yield _given(f"{name}.ffn_act", layer.mlp.fc2)
        yield _made(f"{name}.ffn_out", layer.mlp.fc2)
        yield _made(f"{name}.layer_out", layer)
    yield _given("vision.features", projector)
    yield _made("projector.mm_0", projector.linear_1)
    yield _given("projector.gelu", projector.linear_2)
    yield _made("projector.out", projector)


def _decoder(model: Model) -> Iterator[Point]:
    decoder, V = model.decoder, model.text.n_vocab
    yield _given("embd", decoder.layers[0])
    for i, layer in enumerate(decoder.layers):
        name, attention = f"blk.{i}", layer.self_attn
        yield _made(f"{name}.attn_norm", layer.input_layernorm)
        yield from _queries_and_keys(name, attention, decoder.rotary_emb)
        yield _made(f"{name}.Vcur", attention.v_proj)
        yield _weights(f"{name}.kq_soft_max", attention)
        yield _given(f"{name}.kqv_out", attention.o_proj)
        yield _made(f"{name}.attn_out", attention.o_proj)
        yield _given(f"{name}.ffn_inp", layer.post_attention_layernorm)
        yield _made(f"{name}.ffn_norm", layer.post_attention_layernorm)
        yield _made(f"{name}.ffn_gate", layer.mlp.gate_proj)
        yield _made(f"{name}.ffn_up", layer.mlp.up_proj)
        yield _given(f"{name}.ffn_swiglu", layer.mlp.down_proj)
        yield _made(f"{name}.ffn_out", layer.mlp.down_proj)
        yield _made(f"{name}.out", layer)
    yield _made("result_norm", decoder.norm)
    yield _made("result_output", model.module.lm_head, lambda x: x[:, :V])


def _queries_and_keys(name: str, attention: Any, rotary: Any) -> Iterator[Point]:
    """Before rope, and after it: no module has the turned ones for its output, so the function that the attention
    calls, with the angles of the model's own module, turns the projection once more."""
    turn = import_module(type(attention).__module__).apply_rotary_pos_emb
    size = attention.head_dim

    def turned(x: Tensor) -> Tensor:  # (T, H * dh) -> (T, H, dh)
        heads = x.reshape(1, len(x), -1, size).transpose(1, 2)
        cos, sin = rotary(heads, torch.arange(len(x))[None])
        both: Tensor = turn(heads, heads, cos, sin)[0][0]
        return adjacent_pairs(both.transpose(0, 1).reshape(x.shape), size).reshape(len(x), -1, size)

    for part, projection in (("Qcur", attention.q_proj), ("Kcur", attention.k_proj)):
        yield _made(f"{name}.{part}", projection, lambda x: adjacent_pairs(x, size))
        yield _made(f"{name}.{part}_rope", projection, turned)


def adjacent_pairs(x: Tensor, size: int) -> Tensor:
    """(T, H * dh), heads of `size` channels: channels i and i + dh / 2 of a head turn together in transformers, 2i and
    2i + 1 in a GGUF file."""
    halves = x.reshape(len(x), -1, 2, size // 2)  # (T, H, 2, dh / 2)
    return halves.transpose(2, 3).reshape(x.shape)
