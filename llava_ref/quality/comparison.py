"""Run a quantised pair and its reference through the same cases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..gguf.file import GGUFFile
from ..loading import operations
from ..model import Llava
from ..models import text_family, tower_family
from ..models.family import TextModel, Tower
from ..ops.protocol import Ops
from ..ops.weight_budget import default_budget
from .behaviour import Difference, PairOutput, Spread, difference, run, spread
from .cases import QualityCase
from .inside import TEXT_LAYERS, TOWER_LAYERS, Kept, Layers, Products, Sums
from .siblings import FilePair, changed

Progress = Callable[[str], None]
"""Called with a few words after each step."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Holds the two pairs and how their halves are loaded. `reference` runs in precision `exact`."""

    reference: Llava
    quantised: FilePair
    precision: str  # of the quantised pair
    threads: int | None  # as in `load`
    weight_cache: int | None  # bytes for each half, as in `load`

    @property
    def reference_pair(self) -> FilePair:
        """Return the reference's files."""
        r = self.reference
        return FilePair(r.text.file if r.has_text else None, r.tower.file if r.has_tower else None)

    def text(self, pair: FilePair, precision: str) -> TextModel | None:
        """Load the pair's text model, if it has one."""
        file = pair.text
        if file is None:
            return None
        return text_family(file).load(file, self._ops([file], precision), self.reference.quirks)

    def tower(self, pair: FilePair, precision: str) -> Tower | None:
        """Load the pair's vision tower, if it has one."""
        file = pair.mmproj
        if file is None:
            return None
        return tower_family(file).load(file, self._ops([file], precision), self.reference.quirks)

    def ops(self, precision: str, budget: int) -> Ops:
        """Return the reference's operations in another precision, with `budget` bytes of weights kept."""
        ops = self.reference.ops
        return operations(ops.name, ops.device, self.threads, budget, precision, self.reference.quirks)

    def _ops(self, files: list[GGUFFile], precision: str) -> Ops:
        if self.weight_cache is not None:
            return self.ops(precision, self.weight_cache)
        return self.ops(precision, default_budget(files, self.reference.ops.device, precision))


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Holds everything measured in forward passes. Errors are relRMS."""

    products: dict[str, float]
    """Matrix -> error of its product, computed from the reference's inputs."""
    added: dict[str, float]
    """Layer -> local error: of its output, computed from the reference's output of the layer before."""
    carried: dict[str, float]
    """Layer -> cumulative error: of its output in the quantised pair's own pass."""
    wanted: tuple[PairOutput, ...]  # the reference's, by case
    differences: tuple[Difference, ...]  # by case

    @property
    def kl(self) -> Spread | None:
        return spread(self.differences)


def behaviour(c: Comparison, cases: Sequence[QualityCase], progress: Progress) -> Behaviour:
    """Run each case through the reference, then twice through the quantised pair.

    In the first run of the quantised pair every layer gets the reference's input, in the second its own."""
    reference, other = c.reference, c.quantised
    text, tower = c.text(other, c.precision), c.tower(other, c.precision)
    names = changed(other, c.reference_pair) if c.precision == "exact" else list(other.tensors())
    products, added, carried = Sums(), Sums(), Sums()
    globs = (*(TOWER_LAYERS if tower is not None else ()), *(TEXT_LAYERS if text is not None else ()))
    at_work = Products(other.tensors(), names, c.ops(c.precision, 0), reference.ops, products)
    want_text, want_tower = at_work.watched(text and reference.text), at_work.watched(tower and reference.tower)
    wanted, differences = [], []
    for done, case in enumerate(cases, 1):
        kept = Kept(globs, reference.ops)
        want = run(want_text, want_tower, case, kept)
        run(text, tower, case, Layers(kept, reference.ops, added, teacher_forced=True))
        got = run(text, tower, case, Layers(kept, reference.ops, carried, teacher_forced=False))
        wanted.append(want)
        differences.append(difference(case, got, want))
        progress(f"{done} of {len(cases)} cases through both pairs")
    sums = (products.rel_rms(), added.rel_rms(), carried.rel_rms())
    return Behaviour(*sums, tuple(wanted), tuple(differences))
