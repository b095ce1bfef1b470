"""Name places in transformers' modules where a stage of this project can be seen."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Point:
    """A stage and the module whose call shows it."""

    name: str
    module: Any
    pick: Callable[[Any, Any], Tensor | Sequence[Tensor]]  # of the module's inputs and its output; one for each picture
    change: Change


def _same(x: Tensor) -> Tensor:
    return x


def given(name: str, module: Any, change: Change = _same) -> Point:
    """Show a module's first input."""
    return Point(name, module, lambda inputs, output: inputs[0], change)


def made(name: str, module: Any, change: Change = _same) -> Point:
    """Show a module's output."""
    return Point(name, module, lambda inputs, output: output[0] if isinstance(output, tuple) else output, change)


def weights(name: str, attention: Any) -> Point:
    """Show the attention weights (H, T, T)."""
    return Point(name, attention, lambda inputs, output: output[1], _same)


def tower_block(name: str, layer: Any) -> Iterator[Point]:
    """Show the stages of a block of CLIP or SigLIP."""
    attention = layer.self_attn
    yield from block(name, layer, attention, attention.out_proj, (layer.layer_norm1, layer.layer_norm2))


def block(
    name: str, layer: Any, attention: Any, out: Any, norms: tuple[Any, Any], qk: tuple[Any, Any] | None = None
) -> Iterator[Point]:
    """Show the stages of a block: `out` is its attention's last matrix, `norms` are before attention and MLP, `qk` make
    its queries and keys."""
    query, key = qk or (attention.q_proj, attention.k_proj)
    yield made(f"{name}.layer_inp_normed", norms[0])
    yield made(f"{name}.Qcur", query)
    yield made(f"{name}.Kcur", key)
    yield made(f"{name}.Vcur", attention.v_proj)
    yield weights(f"{name}.kq_soft_max", attention)
    yield given(f"{name}.kqv_out", out)
    yield made(f"{name}.attn_out", out)
    yield given(f"{name}.ffn_inp", norms[1])
    yield made(f"{name}.ffn_inp_normed", norms[1])
    yield made(f"{name}.ffn_up", layer.mlp.fc1)
    yield given(f"{name}.ffn_act", layer.mlp.fc2)
    yield made(f"{name}.ffn_out", layer.mlp.fc2)
    yield made(f"{name}.layer_out", layer)
