"""Parts that the networks share.   T, S positions, H query heads, Hkv key/value heads, dh head size."""

from ..ops.protocol import KV, Array, Ops, Plan
from ..tracing.trace import ON_REQUEST, Tap, wants


def attend(q: Array, kv: KV, scale: float, plan: Plan, ops: Ops, tap: Tap) -> Array:
    """Return softmax(q k^T * scale + mask) v.  (T, H, dh), kv of S positions -> (T, H * dh)

    The weights (H, T, S) exist by themselves only where the tap wants `kq_soft_max`; a backend may fuse the rest."""
    if not wants(tap, ON_REQUEST):
        return ops.attention(q, kv, scale, plan)
    weights = tap(ON_REQUEST, ops.attention_weights(q, kv, scale, plan))
    return ops.attention_values(weights, kv)
