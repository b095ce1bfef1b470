"""A kernel that does not fit a card's shared memory is launched with fewer stages."""

import pytest

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from llava_ref.kernels.triton.fitting import launch_fitting


class Kernel:
    """Stands for a kernel of which `room` stages fit."""

    def __init__(self, room):
        self.room, self.tried = room, []

    def __getitem__(self, grid):
        return lambda *arguments, num_warps, num_stages, **constants: self.launch(
            grid, arguments, constants, num_stages
        )

    def launch(self, grid, arguments, constants, stages):
        self.tried.append(stages)
        if stages > self.room:
            raise OutOfResources(stages * 32768, self.room * 32768, "shared memory")
        self.launched = grid, arguments, constants


def test_as_many_stages_as_fit_are_launched_and_remembered():
    kernel = Kernel(room=2)
    for _ in range(2):
        launch_fitting(kernel, (3, 1), ("x",), {"SIZE": 64}, warps=4, stages=4)
    assert kernel.tried == [4, 3, 2, 2] and kernel.launched == ((3, 1), ("x",), {"SIZE": 64})
    launch_fitting(kernel, (3, 1), ("x",), {"SIZE": 32}, warps=4, stages=3)
    assert kernel.tried[4:] == [3, 2]


def test_where_nothing_fits_the_reason_is_given():
    with pytest.raises(OutOfResources, match="shared memory"):
        launch_fitting(Kernel(room=0), (1,), (), {}, warps=4, stages=2)
