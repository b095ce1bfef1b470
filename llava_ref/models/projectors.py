"""Patch features -> rows that stand among the decoder's token embeddings.   N patches, Dv tower width, D decoder width.

`mlp`: two linear maps with a GELU between them. Liu et al. 2023, https://arxiv.org/abs/2310.03744, section 3.2.
"""

from dataclasses import dataclass

from ..ops.protocol import Activation, Array, Ops
from ..profiles import Quirks
from ..tracing.trace import Tap, no_tap, scoped
from .weights import Affine, Weights


@dataclass(frozen=True, slots=True)
class ProjectorWeights:
    first: Affine  # mm.0: (M, Dv)
    second: Affine  # mm.2: (D, M)
    activation: Activation


def load(w: Weights, width: int, quirks: Quirks) -> ProjectorWeights:
    """Takes the projector's tensors. GGUFError names what is missing or has the wrong shape."""
    middle, out = (w.matrix_shape(name)[0] for name in ("mm.0.weight", "mm.2.weight"))
    return ProjectorWeights(
        first=w.affine("mm.0", (middle, width)),
        second=w.affine("mm.2", (out, middle)),
        activation="gelu_erf" if quirks.gelu == "erf" else "gelu_tanh",
    )


def mlp(x: Array, w: ProjectorWeights, ops: Ops, tap: Tap = no_tap) -> Array:
    """(N, Dv) -> (N, D)"""
    tap = scoped(tap, "projector")
    h = tap("mm_0", ops.linear(x, w.first.weight, w.first.bias))  # (N, M)
    h = tap("gelu", ops.activation(h, w.activation))
    return tap("out", ops.linear(h, w.second.weight, w.second.bias))
