"""Map a tower's features to rows that stand among the decoder's token embeddings.

N patches, Dv tower width, M middle, D decoder width.
"""

from dataclasses import dataclass

from ..ops.protocol import Activation, Array, Linear, Ops
from ..tracing.trace import Tap, no_tap, scoped
from .stages import Stage
from .weights import Weights

MLP_STAGES = (
    Stage("projector.mm_0", "N M", "matmul", "mm.0.weight", "node (ADD)", "multi_modal_projector.linear_1"),
    Stage("projector.gelu", "N M", "table", None, "node (UNARY)", "multi_modal_projector.act"),
    Stage("projector.out", "N D", "matmul", "mm.2.weight", "node (ADD), the last", "multi_modal_projector"),
)


@dataclass(frozen=True, slots=True)
class MlpWeights:
    first: Linear  # mm.0: (M, Dv)
    second: Linear  # mm.2: (D, M)

    @property
    def width(self) -> int:
        return self.second.weight.shape[0]


def load_mlp(w: Weights, width: int) -> MlpWeights:
    """Take the projector's tensors. Raises GGUFError for what is missing or has the wrong shape."""
    middle, out = (w.matrix_shape(name)[0] for name in ("mm.0.weight", "mm.2.weight"))
    return MlpWeights(first=w.linear("mm.0", (middle, width)), second=w.linear("mm.2", (out, middle)))


def mlp(x: Array, w: MlpWeights, gelu: Activation, ops: Ops, tap: Tap = no_tap) -> Array:
    """Apply two linear maps with a GELU between them.  (N, Dv) -> (N, D)

    Liu et al. 2023, https://arxiv.org/abs/2310.03744, section 3.2."""
    tap = scoped(tap, "projector")
    h = tap("mm_0", ops.linear(x, w.first))  # (N, M)
    h = tap("gelu", ops.activation(h, gelu))
    return tap("out", ops.linear(h, w.second))
