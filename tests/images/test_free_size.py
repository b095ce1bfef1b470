"""The size at which a tower of free sizes sees a picture: both rules, and the counts that follow."""

import numpy as np
import pytest

from llava_ref.errors import ParameterError
from llava_ref.images.free_size import FreeSize, LongestEdge

PROCESSOR, MTMD = FreeSize(28, 4, 16384, False), FreeSize(28, 8, 4096, True)


@pytest.mark.parametrize(
    "rule, width, height, want",
    [
        (PROCESSOR, 280, 140, (280, 140)),
        (PROCESSOR, 42, 70, (56, 56)),  # 1.5 and 2.5 squares: halves go to the even number
        (MTMD, 42, 70, (84, 112)),  # away from zero, 56 x 84, of which 6 squares are too few
        (PROCESSOR, 30, 30, (56, 56)),  # 1 square is below 4
        (MTMD, 30, 30, (84, 84)),  # and below 8
        (PROCESSOR, 13, 100, (28, 168)),  # 0 squares are too few: the side grows, to 0.6
        (PROCESSOR, 5000, 5000, (3556, 3556)),  # 128 squares a side are the limit; 127.99 are rounded down
        (MTMD, 5000, 5000, (1792, 1792)),
        (MTMD, 20000, 10, (19992, 28)),
    ],
)
def test_sizes(rule, width, height, want):
    assert rule.of(width, height) == want
    assert rule.of(height, width) == want[::-1]


def test_the_limits_hold():
    """Every side is whole squares, and their number within the limits but for what rounding up adds."""
    rng = np.random.default_rng(0)
    for rule in (PROCESSOR, MTMD):
        for _ in range(300):
            width, height = (int(2 ** rng.uniform(2, 12.5)) for _ in range(2))
            if max(width, height) > 200 * min(width, height):
                continue
            columns, rows = (side / rule.square for side in rule.of(width, height))
            assert columns == int(columns) >= 1 and rows == int(rows) >= 1
            assert rule.least <= columns * rows <= rule.most
            if min(width, height) >= rule.square and rule.least * 4 < columns * rows < rule.most / 4:
                assert abs(columns * rule.square - width) <= rule.square / 2


def test_what_transformers_refuses():
    with pytest.raises(ParameterError, match="image: 2010 x 10: one side is more than 200 times the other"):
        PROCESSOR.of(2010, 10)
    assert PROCESSOR.of(2000, 10)[1] == 28 and MTMD.of(2010, 10)[1] >= 28


@pytest.mark.parametrize(
    "size, seen",
    [
        ((1, 1), (16, 16)),
        ((16, 17), (16, 32)),
        ((100, 100), (112, 112)),
        ((200, 100), (112, 64)),  # 100 x 50, then up
        ((101, 300), (48, 112)),  # 33 x 100: sides are rounded down when they shrink
        ((100, 1), (112, 16)),
    ],
)
def test_a_picture_is_shrunk_and_then_rounded_up(size, seen):
    assert LongestEdge(16, 100).of(*size) == seen


def test_the_largest_picture_by_its_longest_edge():
    rule = LongestEdge(16, 100)
    assert (rule.least, rule.lines, rule.most) == (1, 7, 49)
    assert rule.of(5000, 5000) == (112, 112)
    with pytest.raises(ParameterError, match="1 x 101: one side vanishes when the other has 100 pixels"):
        rule.of(1, 101)
