"""Taps: how a forward pass is watched without knowing that it is.

A tap is a function `(name, x) -> x`, called with every named intermediate array and giving back the array to go on
with. Names: `vision.<stage>` and `vision.blk.<i>.<part>` in the tower, `projector.<part>`, `blk.<i>.<part>` and
`result_*` in the decoder; the parts are llama.cpp's callback names where it has one (b10605, `cb(...)` in
models/llava.cpp and llama-graph.cpp).
"""

from collections.abc import Callable

from .ops import Array

Tap = Callable[[str, Array], Array]


def no_tap(name: str, x: Array) -> Array:
    """The tap of an ordinary run."""
    return x


def scoped(tap: Tap, prefix: str) -> Tap:
    """`tap`, with `prefix.` put before every name. `no_tap` stays `no_tap`, so that an ordinary run pays nothing."""
    if tap is no_tap:
        return no_tap
    return lambda name, x: tap(f"{prefix}.{name}", x)
