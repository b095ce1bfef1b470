"""Map a tower's features to rows that stand among the decoder's token embeddings.

N patches, Dv tower width, M middle, D decoder width.
"""

from dataclasses import dataclass

import numpy as np

from ..ops.protocol import Activation, Array, Linear, Norm, Ops
from ..tracing.trace import Tap, no_tap, scoped
from .stages import Stage
from .weights import Weights

MLP_STAGES = (
    Stage("projector.mm_0", "N M", "matmul", "mm.0.weight", "node (ADD)", "multi_modal_projector.linear_1"),
    Stage("projector.gelu", "N M", "table", None, "node (UNARY)", "multi_modal_projector.act"),
    Stage("projector.out", "N D", "matmul", "mm.2.weight", "node (ADD), the last", "multi_modal_projector"),
)


NORM_STAGES = (  # of Yi-VL's, which transformers has not
    Stage("projector.mm_0", "N M", "matmul", "mm.0.weight", "node (ADD)"),
    Stage("projector.mm_1", "N M", "float", None, "node (ADD)"),
    Stage("projector.gelu", "N M", "table", None, "node (UNARY)"),
    Stage("projector.mm_3", "N D", "matmul", "mm.3.weight", "node (ADD)"),
    Stage("projector.out", "N D", "float", None, "node (ADD), the last"),
)


@dataclass(frozen=True, slots=True)
class MlpWeights:
    first: Linear  # mm.0: (M, Dv)
    second: Linear  # mm.2: (D, M); Yi-VL: mm.3
    norms: tuple[Norm, Norm] | None = None  # Yi-VL: mm.1 (M,) behind the first, mm.4 (D,) behind the second

    @property
    def width(self) -> int:
        return self.second.weight.shape[0]


def pool(x: Array, n: int, m: int) -> Array:
    """Average squares of m x m patches, row by row.  (n * n, Dv) -> (n/m * n/m, Dv)"""
    x = x.reshape((n // m, m, n // m, m, x.shape[-1]))
    total = sum(x[:, dy, :, dx] for dy in range(m) for dx in range(m))
    return (total * (1 / m**2)).reshape(((n // m) ** 2, x.shape[-1]))


def shuffle(x: Array, n: int, s: int) -> Array:
    """Put squares of s x s patches into one row each, their lines one after the other ("pixel shuffle").

    (n * n, Dv) -> (n/s * n/s, s*s*Dv)"""
    return squares_first(x, n, n, s)


def squares_first(x: Array, rows: int, columns: int, s: int) -> Array:
    """Do the same with patches that are no square.  (rows * columns, Dv) -> (rows/s * columns/s, s*s*Dv)"""
    y, x_ = rows // s, columns // s
    order = np.arange(rows * columns).reshape(y, s, x_, s).swapaxes(1, 2).ravel()
    return x[order].reshape((y * x_, s * s * x.shape[-1]))


def load_mlp(w: Weights, width: int) -> MlpWeights:
    """Take the projector's tensors. Raises GGUFError for what is missing or has the wrong shape."""
    if w.has("mm.3.weight"):
        middle, out = (w.matrix_shape(name)[0] for name in ("mm.0.weight", "mm.3.weight"))
        norms = w.norm("mm.1", middle), w.norm("mm.4", out)
        return MlpWeights(w.linear("mm.0", (middle, width)), w.linear("mm.3", (out, middle)), norms)
    middle, out = (w.matrix_shape(name)[0] for name in ("mm.0.weight", "mm.2.weight"))
    return MlpWeights(first=w.linear("mm.0", (middle, width)), second=w.linear("mm.2", (out, middle)))


def mlp(x: Array, w: MlpWeights, gelu: Activation, eps: float, ops: Ops, tap: Tap = no_tap) -> Array:
    """Apply two linear maps with a GELU between them; Yi-VL's have a norm behind each.  (N, Dv) -> (N, D)

    Liu et al. 2023, https://arxiv.org/abs/2310.03744, section 3.2; Yi: https://arxiv.org/abs/2403.04652, section 7.3;
    llama.cpp b11549, models/llava.cpp, PROJECTOR_TYPE_MLP_NORM."""
    tap = scoped(tap, "projector")
    h = tap("mm_0", ops.linear(x, w.first))  # (N, M)
    if w.norms is None:
        h = tap("gelu", ops.activation(h, gelu))
        return tap("out", ops.linear(h, w.second))
    h = tap("mm_1", ops.layer_norm(h, w.norms[0], eps))
    h = tap("gelu", ops.activation(h, gelu))
    h = tap("mm_3", ops.linear(h, w.second))  # (N, D)
    return tap("out", ops.layer_norm(h, w.norms[1], eps))
