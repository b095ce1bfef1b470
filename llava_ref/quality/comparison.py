"""A quantised pair and its reference through the same cases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..generation.engine import Engine
from ..model import Llava
from ..ops import get_ops
from .behaviour import Difference, Outcome, Spread, difference, run, spread
from .cases import Case
from .inside import TEXT_LAYERS, TOWER_LAYERS, Kept, Layers, Products, Sums
from .siblings import Pair, changed

Say = Callable[[str], None]
"""Told what has been done, a few words at a time."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared, and how engines for it are made. `reference` runs in precision `exact`."""

    reference: Llava
    quantised: Pair
    precision: str  # of the quantised pair
    threads: int | None  # as in `load`
    weight_cache: int | None  # bytes for each engine, as in `load`

    @property
    def reference_pair(self) -> Pair:
        return Pair(self.reference.engine.text_file, self.reference.engine.mmproj_file)

    def text(self, pair: Pair, precision: str) -> Engine | None:
        """An engine for the pair's text model alone."""
        return None if pair.text is None else self._engine(Pair(pair.text, None), precision)

    def tower(self, pair: Pair, precision: str) -> Engine | None:
        """An engine for the pair's vision tower alone."""
        return None if pair.mmproj is None else self._engine(Pair(None, pair.mmproj), precision)

    def _engine(self, pair: Pair, precision: str) -> Engine:
        ops, quirks = self.reference.engine.ops, self.reference.engine.quirks
        return Engine(
            pair.text,
            pair.mmproj,
            backend=ops.name,
            device=ops.device,
            precision=precision,
            threads=self.threads,
            quirks=quirks,
            weight_cache=self.weight_cache,
        )


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What was measured in whole passes. Errors are relRMS."""

    products: dict[str, float]
    """Matrix -> error of its product, from the reference's inputs."""
    added: dict[str, float]
    """Layer -> error of its output, from the reference's output of the layer before."""
    carried: dict[str, float]
    """Layer -> error of its output in the quantised pair's own pass."""
    wanted: tuple[Outcome, ...]  # the reference's, by case
    differences: tuple[Difference, ...]  # by case

    @property
    def kl(self) -> Spread | None:
        return spread(self.differences)


def behaviour(c: Comparison, cases: Sequence[Case], say: Say) -> Behaviour:
    """Four passes a case: the reference; the quantised pair fed by it, layer by layer; and by itself."""
    engine, other = c.reference.engine, c.quantised
    text, tower = c.text(other, c.precision), c.tower(other, c.precision)
    ops = get_ops(engine.ops.name, engine.ops.device, c.threads, 0, c.precision, engine.quirks)
    names = changed(other, c.reference_pair) if c.precision == "exact" else list(other.tensors())
    products, added, carried = Sums(), Sums(), Sums()
    globs = (*(TOWER_LAYERS if tower is not None else ()), *(TEXT_LAYERS if text is not None else ()))
    wanted, differences = [], []
    for done, case in enumerate(cases, 1):
        kept = Kept(globs, engine.ops)
        at_work = Products(engine, other.tensors(), names, ops, products)
        want = run(engine if text else None, engine if tower else None, case, kept, at_work)
        run(text, tower, case, Layers(kept, engine.ops, added, forced=True))
        got = run(text, tower, case, Layers(kept, engine.ops, carried, forced=False))
        wanted.append(want)
        differences.append(difference(case, got, want))
        say(f"{done} of {len(cases)} cases through both pairs")
    sums = (products.rel_rms(), added.rel_rms(), carried.rel_rms())
    return Behaviour(*sums, tuple(wanted), tuple(differences))
