"""Map a CLIP tower's features as MobileVLM does (projector `ldp`) and MobileVLM V2 (`ldpv2`), to a quarter of the rows.

N = n * n patches, Dv tower width, M middle, D decoder width. transformers has neither; names of tensors and the order
of steps: llama.cpp b11549, tools/mtmd/models/llava.cpp, which runs both with n = 24 only.
"""

from dataclasses import dataclass

import numpy as np

from ..ops.protocol import Activation, Array, Linear, Norm, Ops
from ..tracing.trace import Tap, no_tap, scoped
from .projectors import pool
from .stages import Stage
from .weights import Weights

PEG_STAGES = (  # MobileVLM V2
    Stage("projector.mm_0", "n*n M", "matmul", "mm.model.mlp.0.weight", "node (ADD)"),
    Stage("projector.gelu", "n*n M", "table", None, "node (UNARY)"),
    Stage("projector.mm_2", "n*n D", "matmul", "mm.model.mlp.2.weight", "node (ADD)"),
    Stage("projector.pool", "N D", "float", None, "node (POOL_2D)"),
    Stage("projector.out", "N D", "table", None, "node (ADD), the last"),  # ggml convolves in float16
)
BLOCK = "mm.model.mb_block"
LDP_STAGES = (  # MobileVLM; ggml convolves in float16
    Stage("projector.mm_1", "n*n M", "matmul", "mm.model.mlp.1.weight", "node (ADD)"),
    Stage("projector.gelu", "n*n M", "table", None, "node (UNARY)"),
    Stage("projector.mm_3", "n*n D", "matmul", "mm.model.mlp.3.weight", "node (ADD)"),
    Stage("projector.mb_1.norm", "n*n D", "table", None, "node (ADD)"),
    Stage("projector.mb_1.excite", "1 D", "matmul", f"{BLOCK}.1.block.1.fc2.weight", "node (ADD)"),
    Stage("projector.mb_1.point", "n*n D", "matmul", f"{BLOCK}.1.block.2.0.weight", "node (MUL_MAT)"),
    Stage("projector.mb_1.out", "n*n D", "float", None, "node (ADD), without a weight"),
    Stage("projector.mb_2.norm", "N D", "table", None, "node (ADD)"),
    Stage("projector.mb_2.excite", "1 D", "matmul", f"{BLOCK}.2.block.1.fc2.weight", "node (ADD)"),
    Stage("projector.mb_2.point", "N D", "matmul", f"{BLOCK}.2.block.2.0.weight", "node (MUL_MAT)"),
    Stage("projector.out", "N D", "float", None, "node (ADD), the last"),
)


@dataclass(frozen=True, slots=True)
class PegWeights:
    first: Linear  # mm.model.mlp.0: (M, Dv)
    second: Linear  # mm.model.mlp.2: (D, M)
    kernel: Array  # mm.model.peg.0: (D, 9), of each channel 3 x 3
    bias: Array  # (D,)

    @property
    def width(self) -> int:
        return self.second.weight.shape[0]


@dataclass(frozen=True, slots=True)
class MobileBlock:
    """A block of MobileNetV3, in tensors of `mm.model.mb_block`."""

    kernel: Array  # block.0.0: (D, 9), of each channel 3 x 3
    norm: Norm  # block.0.1: (D,)
    squeeze: Linear  # block.1.fc1: (R, D)
    excite: Linear  # block.1.fc2: (D, R)
    point: Linear  # block.2.0: (D, D)
    out_norm: Norm  # block.2.1: (D,)


@dataclass(frozen=True, slots=True)
class LdpWeights:
    first: Linear  # mm.model.mlp.1: (M, Dv)
    second: Linear  # mm.model.mlp.3: (D, M)
    blocks: tuple[MobileBlock, MobileBlock]

    @property
    def width(self) -> int:
        return self.second.weight.shape[0]


def load_peg(w: Weights, width: int) -> PegWeights:
    """Take the tensors of projector `ldpv2`. Raises GGUFError for what is missing or has the wrong shape."""
    name = "mm.model.mlp"
    middle, out = (w.matrix_shape(f"{name}.{i}.weight")[0] for i in (0, 2))
    return PegWeights(
        first=w.linear(f"{name}.0", (middle, width)),
        second=w.linear(f"{name}.2", (out, middle)),
        kernel=w.vector("mm.model.peg.0.weight", (out, 1, 3, 3)).reshape((out, 9)),
        bias=w.vector("mm.model.peg.0.bias", (out,)),
    )


def load_ldp(w: Weights, width: int) -> LdpWeights:
    """Take the tensors of projector `ldp`. Raises GGUFError for what is missing or has the wrong shape."""
    name = "mm.model.mlp"
    middle, out = (w.matrix_shape(f"{name}.{i}.weight")[0] for i in (1, 3))
    return LdpWeights(
        first=w.linear(f"{name}.1", (middle, width)),
        second=w.linear(f"{name}.3", (out, middle)),
        blocks=(_load_block(w, f"{BLOCK}.1", out), _load_block(w, f"{BLOCK}.2", out)),
    )


def _load_block(w: Weights, name: str, D: int) -> MobileBlock:
    R = w.matrix_shape(f"{name}.block.1.fc1.weight")[0]
    return MobileBlock(
        kernel=w.vector(f"{name}.block.0.0.weight", (D, 1, 3, 3)).reshape((D, 9)),
        norm=w.norm(f"{name}.block.0.1", D),
        squeeze=w.linear(f"{name}.block.1.fc1", (R, D)),
        excite=w.linear(f"{name}.block.1.fc2", (D, R)),
        point=w.linear(f"{name}.block.2.0", (D, D)),
        out_norm=w.norm(f"{name}.block.2.1", D),
    )


def ldp(x: Array, w: LdpWeights, gelu: Activation, eps: float, n: int, ops: Ops, tap: Tap = no_tap) -> Array:
    """Map patches, then apply two blocks, of which the second keeps every other row and column.  (n * n, Dv) -> (N, D)

    Chu et al. 2023 (MobileVLM), https://arxiv.org/abs/2312.16886, section 3.4."""
    tap = scoped(tap, "projector")
    h = tap("mm_1", ops.linear(x, w.first))  # (n * n, M)
    h = tap("gelu", ops.activation(h, gelu))
    h = tap("mm_3", ops.linear(h, w.second))  # (n * n, D)
    h = tap("mb_1.out", h + mobile(h, w.blocks[0], eps, n, 1, ops, scoped(tap, "mb_1")))
    return tap("out", mobile(h, w.blocks[1], eps, n, 2, ops, scoped(tap, "mb_2")))


def mobile(x: Array, w: MobileBlock, eps: float, n: int, stride: int, ops: Ops, tap: Tap) -> Array:
    """Mix neighbours, weigh channels by what they are on average, mix channels.  (n * n, D) -> (n/stride squared, D)

    Howard et al. 2019 (MobileNetV3), https://arxiv.org/abs/1905.02244, section 5; norms are LayerNorms here."""
    h = ops.depthwise(x, w.kernel, neighbours(n, stride))
    h = tap("norm", ops.layer_norm(h, w.norm, eps))
    h = h * hard_sigmoid(h, ops)  # "h-swish"
    e = ops.clamp(ops.linear(pool(h, n // stride, n // stride), w.squeeze), 0, np.inf)  # (1, R), ReLU
    e = tap("excite", ops.linear(e, w.excite))  # (1, D)
    h = tap("point", ops.linear(h * hard_sigmoid(e, ops), w.point))
    return ops.layer_norm(h, w.out_norm, eps)


def hard_sigmoid(x: Array, ops: Ops) -> Array:
    return ops.clamp(x + 3, 0, 6) * (1 / 6)


def peg(x: Array, w: PegWeights, gelu: Activation, n: int, ops: Ops, tap: Tap = no_tap) -> Array:
    """Map patches, average squares of 2 x 2, and add to each what its neighbours say.  (n * n, Dv) -> (N, D)

    Chu et al. 2024 (MobileVLM V2), https://arxiv.org/abs/2402.03766, section 3.3."""
    tap = scoped(tap, "projector")
    h = tap("mm_0", ops.linear(x, w.first))  # (n * n, M)
    h = tap("gelu", ops.activation(h, gelu))
    h = tap("mm_2", ops.linear(h, w.second))  # (n * n, D)
    h = tap("pool", pool(h, n, 2))  # (N, D)
    return tap("out", h + ops.depthwise(h, w.kernel, neighbours(n // 2)) + w.bias)


def neighbours(n: int, stride: int = 1) -> np.ndarray:
    """Return for each of 3 x 3 neighbours, row by row, its number in a grid of n x n; -1: outside.

    -> (9, n/stride squared) int64"""
    grid = np.pad(np.arange(n * n).reshape(n, n), 1, constant_values=-1)
    every = slice(None, None, stride)
    return np.stack([grid[dy : dy + n, dx : dx + n][every, every].ravel() for dy in range(3) for dx in range(3)])
