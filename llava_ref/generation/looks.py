"""Keep the pictures that some decoders look at beside the sequence, and show them to the decoder when rows are run."""

from collections.abc import Callable, Sequence
from itertools import accumulate

from ..errors import PromptError
from ..models.family import LookingModel, TextModel
from ..models.looking import PictureStates
from ..ops.protocol import Array, Cache
from ..tracing.trace import Tap
from .units import Picture, PictureRows, Unit, equal


class Looks:
    """The pictures of one sequence, by the positions of their tokens; none where they stand in it by their rows."""

    def __init__(self, text: TextModel) -> None:
        self._text, self._model = text, text if isinstance(text, LookingModel) else None
        self._noted: list[tuple[int, PictureStates]] = []
        self._coming: list[tuple[int, PictureStates]] = []  # those that the decoder has not been shown

    def cache(self, limit: int) -> Cache:
        """Begin an empty sequence of at most `limit` positions."""
        c = self._text.config
        if self._model is not None:
            return self._model.cache(limit)
        return self._text.ops.cache(c.n_layer, c.n_head_kv, c.head_size, limit)

    def check(self, picture: Picture) -> None:
        """Raise PromptError for a picture that this decoder cannot take."""
        width, shape = self._text.config.width, picture.data.shape
        if len(shape) != 2 or shape[1] != width:
            raise PromptError("prompt", "image rows", f"{shape}, expected (n, {width})")
        wanted = PictureRows if self._model is None else PictureStates
        placeless = isinstance(picture, PictureRows) and picture.grid is None and self._text.GRID_POSITIONS
        if not isinstance(picture, wanted) or placeless:
            raise PromptError("prompt", "image rows", f"an array; this model asks for `{wanted.__name__}`")

    def embedded(self, unit: Unit) -> Array:
        """Return the rows that go in for a unit.  -> (n, D)"""
        if isinstance(unit, PictureRows):
            return self._text.ops.array(unit.data)
        if isinstance(unit, PictureStates):
            assert self._model is not None
            return self._model.embed_picture()
        return self._text.embed(unit)

    def note(self, units: Sequence[Unit], cache: Cache) -> None:
        """Note the pictures of what is to be run next: already its first row may be in front of one and see it."""
        if self._model is None:
            return
        first = cache.length
        cache.truncate(first)  # pictures that were noted and not reached
        starts = list(accumulate(map(len, units), initial=first))
        self._coming = [(at, unit) for at, unit in zip(starts, units, strict=False) if isinstance(unit, PictureStates)]
        self._noted = [noted for noted in self._noted if noted[0] < first] + self._coming

    def show(self, cache: Cache, tap: Callable[[int, int], Tap]) -> None:
        """Show the decoder what was noted last. `tap`: of states from one number to another, counted over pictures."""
        first = sum(len(picture.data) for _, picture in self._noted) - sum(len(new.data) for _, new in self._coming)
        for at, picture in self._coming:
            assert self._model is not None
            self._model.look(picture, at, cache, tap(first, first + len(picture.data)))
            first += len(picture.data)
        self._coming = []

    def are(self, units: Sequence[Unit]) -> bool:
        """Say whether a prompt has the same pictures."""
        theirs = [unit for unit in units if isinstance(unit, PictureStates)]
        ours = [picture for _, picture in self._noted]
        return len(theirs) == len(ours) and all(map(equal, theirs, ours))
