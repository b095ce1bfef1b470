"""Choose the size at which a picture is seen by a tower that takes every size: near its own, in whole squares.

Rules of transformers 5.24 (models/qwen2_vl/image_processing_qwen2_vl.py, `smart_resize`) and of llama.cpp b11549
(tools/mtmd/mtmd-image.cpp, `calc_size_preserved_ratio`), which differ in their numbers, not in their steps; for Pixtral
transformers has a rule of its own (models/pixtral/image_processing_pil_pixtral.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ParameterError
from .fit import Fitted, resize_pad, stretch
from .resample import BICUBIC

BLACK = (0, 0, 0)
STEEPEST = 200
"""Sides to one another, above which transformers refuses a picture."""


@dataclass(frozen=True, slots=True)
class FreeSize:
    """Both sides are multiples of `square`; between `least` and `most` squares in all."""

    square: int  # pixels a side
    least: int
    most: int
    single: bool  # as llama.cpp: in float32, halves away from zero; else in float64, halves to even

    @property
    def lines(self) -> int:
        """Return the squares one above the other of the tallest picture."""
        return self.most

    def of(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height at which a picture is seen, in pixels.

        Raises ParameterError, by transformers' rule, where one side is more than 200 times the other."""
        if not self.single and max(width, height) > STEEPEST * min(width, height):
            problem = f"one side is more than {STEEPEST} times the other, which transformers refuses"
            raise ParameterError("image", f"{width} x {height}", problem)
        sides = [self._multiple(side, self._nearest) for side in (width, height)]
        least, most = (count * self.square**2 for count in (self.least, self.most))
        area = self._number(height) * self._number(width)
        if sides[0] * sides[1] > most:
            shrink = np.sqrt(area / self._number(most))
            sides = [max(self.square, self._multiple(side / shrink, math.floor)) for side in (width, height)]
        elif sides[0] * sides[1] < least:
            grow = np.sqrt(self._number(least) / area)
            sides = [self._multiple(side * grow, math.ceil) for side in (width, height)]
        return sides[0], sides[1]

    def _multiple(self, side: float, whole: Callable[[Any], int]) -> int:
        return whole(self._number(side) / self._number(self.square)) * self.square

    def _nearest(self, x: Any) -> int:
        return max(1, math.floor(x + 0.5)) if self.single else round(x)

    def _number(self, x: float) -> Any:
        return np.float32(x) if self.single else np.float64(x)


@dataclass(frozen=True, slots=True)
class LongestEdge:
    """Both sides are multiples of `square`: rounded up, of a picture whose longer side has at most `longest` pixels."""

    square: int  # pixels a side
    longest: int

    @property
    def least(self) -> int:
        return 1

    @property
    def lines(self) -> int:
        """Return the squares one above the other of the tallest picture."""
        return -(-self.longest // self.square)

    @property
    def most(self) -> int:
        """Return the squares of the largest picture."""
        return self.lines**2

    def of(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height at which a picture is seen, in pixels.

        Raises ParameterError where the shorter side would have none, which transformers refuses too."""
        shrink = max(1.0, width / self.longest, height / self.longest)
        sides = [math.floor(side / shrink) for side in (width, height)]
        if not min(sides):
            problem = f"one side vanishes when the other has {self.longest} pixels, which transformers refuses"
            raise ParameterError("image", f"{width} x {height}", problem)
        return -(-sides[0] // self.square) * self.square, -(-sides[1] // self.square) * self.square


def fitted(rgb: np.ndarray, size: tuple[int, int], stretched: bool) -> Fitted:
    """Stretch a picture to its size, or keep its aspect and fill with black.  (h, w, 3) uint8 -> (H, W, 3) uint8"""
    return stretch(rgb, size, BICUBIC) if stretched else resize_pad(rgb, size, BLACK, BICUBIC)
