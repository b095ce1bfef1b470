"""Attention, with its weights on show for a tap that wants them.   T, S positions, H query heads, Hkv key/value heads,
dh head size.
"""

from ..ops.protocol import Array, Ops
from ..tracing.trace import ON_REQUEST, Tap, wants


def attend(q: Array, k: Array, v: Array, scale: float, mask: Array | None, ops: Ops, tap: Tap) -> Array:
    """softmax(q k^T * scale + mask) v.  (T, H, dh) (S, Hkv, dh) (S, Hkv, dh) (T, S) -> (T, H * dh)

    The weights (H, T, S) exist by themselves only where the tap wants `kq_soft_max`; a backend may fuse the rest."""
    if not wants(tap, ON_REQUEST):
        return ops.attention(q, k, v, scale, mask)
    weights = tap(ON_REQUEST, ops.attention_weights(q, k, scale, mask))
    return ops.attention_values(weights, v)
