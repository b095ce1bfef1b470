"""Stop at the first array that holds NaN or infinity, and name it."""

from pathlib import Path

from ..errors import NumericsError
from ..ops.protocol import Array, Ops
from .trace import At, Probe


class RefuseNotFinite(Probe):
    """Raises NumericsError at the first array with a NaN or infinity. `file`: the model's."""

    def __init__(self, ops: Ops, file: Path) -> None:
        super().__init__(["*"])
        self._ops, self._file = ops, file

    def see(self, x: Array, at: At) -> Array:
        if not self._ops.all_finite(x):
            raise NumericsError(self._file, at.name, "holds NaN or infinity, the first tensor to do so")
        return x
