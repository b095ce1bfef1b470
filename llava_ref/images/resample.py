"""Resize 8-bit pictures, the same to the bit as Pillow's `Image.resize`, bicubic, bilinear or Lanczos.

The rules (Pillow, src/libImaging/Resample.c; llama.cpp b10605, mtmd-image.cpp:204-480 does the same): two passes, one
per axis, with an 8-bit picture in between. Output i of n_out looks at position (i + 0.5) * n_in / n_out of the input
through the kernel, widened by n_in / n_out if that is over 1. The weights of one output are divided by their sum and
rounded to multiples of 2**-22. All further sums are of integers.

These integers stay below 2**31 and are stored in float64, which is exact to 2**53. So a pass is a few small matrix
products, and neither their order nor the number of threads can change a bit. No temporary array has the size of the
input.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Order = Literal["horizontal", "pillow"]

ONE = 1 << 22  # weights are multiples of 1 / ONE
TILE = 1 << 20  # numbers in one temporary array: 8 MB
BLOCK = 16  # outputs that share one matrix of weights


@dataclass(frozen=True, slots=True)
class Filter:
    """The weight of a pixel by its distance x >= 0, which is 0 from `support` on."""

    support: float
    weight: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Axis:
    """Outputs `start`..`stop` of `n_out`, from `n_in` inputs."""

    n_in: int
    n_out: int
    start: int
    stop: int
    kernel: Filter

    @property
    def scale(self) -> float:
        """Return the inputs for each output."""
        return self.n_in / self.n_out

    @property
    def reach(self) -> float:
        """Return the distance from an output's centre, in inputs, from which on inputs have no weight."""
        return self.kernel.support * max(self.scale, 1.0)

    def bounds(self, i: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the centres of outputs `i` (n,), their first inputs, and one past their last inputs, (n,) each."""
        centre = (i + 0.5) * self.scale
        first = np.maximum((centre - self.reach + 0.5).astype(np.int64), 0)
        return centre, first, np.minimum((centre + self.reach + 0.5).astype(np.int64), self.n_in)

    def inputs(self) -> tuple[int, int]:
        """Return the inputs that the outputs start..stop depend on: the first, and one past the last."""
        _, first, end = self.bounds(np.array([self.start, self.stop - 1]))
        return int(first[0]), int(end[-1])


def resize(
    rgb: np.ndarray,
    width: int,
    height: int,
    *,
    kernel: Filter,
    order: Order = "horizontal",
    window: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """Resize a picture, or only a `window` (left, top, right, bottom) of it.  (h, w, 3) -> (height, width, 3) uint8

    An axis whose size does not change is copied. `order` decides which pass comes first. "horizontal" is the order of
    llama.cpp and of Pillow before 13. "pillow" is that of Pillow 13: vertical first if the height shrinks by more than
    twice what the width shrinks by (their pull request 9549; the rule was found by experiment on 1,300 pairs of sizes).
    """
    h, w = rgb.shape[:2]
    left, top, right, bottom = window or (0, 0, width, height)
    columns, rows = Axis(w, width, left, right, kernel), Axis(h, height, top, bottom, kernel)
    if order == "pillow" and height < h and h - height > 2 * (w - width):
        start, stop = columns.inputs()
        middle = _run(rgb[:, start:stop].transpose(1, 0, 2), rows).transpose(1, 0, 2)
        return _run(middle, columns, start)
    start, stop = rows.inputs()
    middle = _run(rgb[start:stop], columns)
    return np.ascontiguousarray(_run(middle.transpose(1, 0, 2), rows, start).transpose(1, 0, 2))


def resize_padded(rgb: np.ndarray, size: int, fill: tuple[int, int, int], kernel: Filter) -> np.ndarray:
    """Centre a picture on a square of colour `fill` and resize that.  (h, w, 3) -> (size, size, 3) uint8

    The square has the longer side of the picture. It is never stored: for a strip of 1 x 10,000 pixels it would need
    300 MB. The padding before the picture is half of the total, rounded down. On a square, both of Pillow's orders are
    horizontal first.
    """
    h, w = rgb.shape[:2]
    side = Axis(max(h, w), size, 0, size, kernel)
    left, top = (side.n_in - w) // 2, (side.n_in - h) // 2
    edge = np.array([fill], np.float64)  # (1, 3)
    middle = _run(rgb, side, left, edge)  # (h, size, 3)
    blank = _run(np.empty((1, 0, 3), np.uint8), side, 0, edge)[0].astype(np.float64)  # (size, 3), a row of padding
    return np.ascontiguousarray(_run(middle.transpose(1, 0, 2), side, top, blank).transpose(1, 0, 2))


def _run(x: np.ndarray, axis: Axis, offset: int = 0, edge: np.ndarray | None = None) -> np.ndarray:
    """Run one pass along the second axis of `x`.  (m, n, 3) uint8 -> (m, stop - start, 3) uint8

    `x` has inputs offset..offset + n of the axis; all others have the colours `edge`, (m, 3) or (1, 3).
    """
    if axis.n_in == axis.n_out and edge is None:
        return x[:, axis.start - offset : axis.stop - offset]
    m, n = x.shape[:2]
    out = np.empty((m, axis.stop - axis.start, 3), np.uint8)
    for start, first, weights in _blocks(axis):
        low, high = np.clip([first, first + len(weights)], offset, offset + n)  # those inputs that `x` has
        inside = weights[low - first : high - first]
        outside = weights.sum(0) - inside.sum(0)  # (k,)
        band = max(1, TILE // (3 * max(len(inside), weights.shape[1])))
        for row in range(0, m, band):
            block = x[row : row + band, low - offset : high - offset]
            planes = block.transpose(2, 0, 1).astype(np.float64, order="C")  # (3, band, inputs)
            total = planes @ inside  # (3, band, k)
            if edge is not None:
                total += (edge if len(edge) == 1 else edge[row : row + band]).T[:, :, None] * outside
            total = np.clip(np.floor((total + ONE // 2) / ONE), 0, 255)
            out[row : row + band, start - axis.start :][:, : weights.shape[1]] = total.transpose(1, 2, 0)
    return out


def _blocks(axis: Axis) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield runs of k neighbouring outputs: first output, first input, weights (inputs, k), integers in float64."""
    for start in range(axis.start, axis.stop, BLOCK):
        i = np.arange(start, min(start + BLOCK, axis.stop))
        centre, first, end = axis.bounds(i)
        j = np.arange(first[0], end[-1])[:, None]  # (inputs, 1)
        x = np.abs((j - centre + 0.5) * (1 / max(axis.scale, 1.0)))
        w = np.where((j >= first) & (j < end), axis.kernel.weight(x), 0.0)
        w /= np.cumsum(w, axis=0)[-1]  # one after the other, as in C; sum() adds in another order
        yield start, int(first[0]), np.trunc(w * ONE + np.copysign(0.5, w))


def _cubic(x: np.ndarray) -> np.ndarray:
    """Return Keys' cubic kernel with a = -0.5."""
    a = -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    x = np.minimum(x, 2.0)  # the outer part is 0 there
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, far)


def _triangle(x: np.ndarray) -> np.ndarray:
    """Return the kernel of linear interpolation."""
    return np.maximum(0.0, 1.0 - x)


def _lanczos(x: np.ndarray) -> np.ndarray:
    """Return sinc(x) sinc(x / 3)."""
    return np.where(x < 3.0, np.sinc(x) * np.sinc(x / 3), 0.0)


BICUBIC, BILINEAR, LANCZOS = Filter(2.0, _cubic), Filter(1.0, _triangle), Filter(3.0, _lanczos)
