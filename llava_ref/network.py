"""`Network`: a decoder, a vision tower, or both, run on token ids and pictures, watched and changed. It knows no words.

N rows of a picture, D decoder width, T positions, V vocabulary, Y and X height and width of a tile in pixels.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import numpy as np

from .errors import ParameterError, PromptError, nearest, visible
from .generation.prompts import decode_image
from .generation.request import Clock, picture_part
from .generation.reuse import Reuse
from .generation.session import Session, shared_steps, unembed
from .generation.units import Part, Picture
from .html import columns, table
from .images import DecodedImage, ImageSource
from .images.fit import Preprocessed
from .models import types
from .models.family import Span, TextModel, Tower, encode, original
from .models.stages import Stages
from .models.summary import text_line, tower_line
from .ops.protocol import Ops
from .profiles import Quirks, describe, resolve
from .tracing.edits import Edit, Edits
from .tracing.finite import RefuseNotFinite
from .tracing.trace import Probe, Probes, Sink, Tap, Trace, no_tap

P = TypeVar("P", bound=Probe)


class Network:
    """The halves of a model as one network: arrays in, arrays out."""

    def __init__(
        self, text: TextModel | None, tower: Tower | None, quirks: Quirks, settings: dict[str, Any],
        n_context: int | None,
    ) -> None:  # fmt: skip
        """Put the halves together; one may be missing. Raises ParameterError for a context that is too long."""
        self._text, self._tower, self.quirks, self.settings = text, tower, quirks, settings
        self.n_context = 0
        """Positions that prompt and answer have together."""
        self.reuse: Reuse | None = None
        """Set to a `Reuse`, the work for one answer serves the next. The answers are the same, bit for bit."""
        self.probes = Probes()
        self._steps = None if text is None else shared_steps(text)
        self.together = 1 if self._steps is None else self.ops.together
        """Answers that are worth running at once, because one step runs the next token of each."""
        if text is not None:
            if n_context is not None and n_context > text.config.context:
                raise ParameterError("n_context", str(n_context), f"the model has {text.config.context} positions")
            self.n_context = n_context or text.config.context

    def facts(self) -> dict[str, str]:
        """Return the lines that describe the model to a reader, by their titles."""
        s, found = self.settings, dict[str, str]()
        if self._text is not None:
            found[f"text, {visible(self._text.file.path.name)}"] = text_line(self._text)
        if self._tower is not None:
            found[f"mmproj, {visible(self._tower.file.path.name)}"] = tower_line(self._tower)
        usual = describe(resolve(s["profile"], None, original(filter(None, (self._text, self._tower)))))
        changed = [f"{name}={value}" for name, value in s["quirks"].items() if value != usual[name]]
        profile = ", with ".join([f"profile {s['profile']}", *filter(None, [", ".join(changed)])])
        found["runs"] = f"{s['backend']} on {s['device']}, precision {s['precision']}; {profile}"
        return found if self._text is None else found | {"context": f"{self.n_context:,} positions"}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}\n{columns([(f'  {title}', text) for title, text in self.facts().items()])}>"

    def _repr_html_(self) -> str:
        return table((), self.facts().items())

    @property
    def text(self) -> TextModel:
        """Return the decoder. Raises PromptError if there is none."""
        if self._text is None:
            raise no_text()
        return self._text

    @property
    def tower(self) -> Tower:
        """Return the vision tower. Raises ParameterError if there is none."""
        if self._tower is None:
            raise ParameterError("mmproj", "missing", "a vision tower is needed for this")
        return self._tower

    @property
    def has_text(self) -> bool:
        return self._text is not None

    @property
    def has_tower(self) -> bool:
        return self._tower is not None

    @property
    def ops(self) -> Ops:
        return self.text.ops if self._text is not None else self.tower.ops

    def session(self) -> Session:
        """Begin an empty sequence."""
        return Session(self.text, self.n_context, self.probes, self._steps)

    def forward(self, parts: Sequence[Part]) -> np.ndarray:
        """Return logits (T, V) at every position of token ids and image rows (n, D), from an empty context."""
        return self.session().feed(parts, all_logits=True)

    def _reuse(self) -> Reuse | None:
        """Return what may be reused now: nothing while a probe must see everything computed."""
        return None if self.probes.complete else self.reuse

    def _rows(self, image: DecodedImage, clock: Clock) -> np.ndarray:
        reuse = self._reuse()
        if reuse is not None and (kept := reuse.rows(image.rgb)) is not None:
            clock.cached_rows.append(kept)
            return kept
        began, tap = time.perf_counter(), self.probes.tap(object())
        picture = self.preprocess(image, tap)
        ready = time.perf_counter()
        rows = self.encode(picture.pixels, picture.source, tap)
        clock.preprocess_s += ready - began
        clock.encode_s += time.perf_counter() - ready
        if reuse is not None:
            reuse.keep_rows(image.rgb, rows)
        return rows

    def decode_image(self, source: ImageSource, where: str = "image") -> DecodedImage:
        """Read a picture as the profile does. Raises ImageError with the file, or `where` if there is none."""
        return decode_image(source, self.quirks, where)

    def preprocess(self, image: DecodedImage, tap: Tap = no_tap) -> Preprocessed:
        """Return a picture as the tower takes it. Raises ParameterError if there is no tower."""
        return self.tower.preprocess(image.rgb, tap)

    def encode(self, pixels: np.ndarray, size: tuple[int, int] = (1, 1), tap: Tap = no_tap) -> np.ndarray:
        """Return the rows that stand in for a picture.  `Preprocessed.pixels` (tiles, 3, Y, X) -> (N, D) float32

        `size`: `Preprocessed.source`, which only pictures of several tiles need."""
        return encode(self.tower, pixels, size, tap)

    def encode_image(self, image: ImageSource) -> np.ndarray:
        """Return the rows that stand in for a picture: bytes, a path, a PIL image or an array -> (N, D) float32."""
        return self.picture_rows(image).data

    def picture_rows(self, image: ImageSource) -> Picture:
        """Return the same as a decoder takes it: with the grid that the rows stand in, or as states to look at."""
        decoded = self.decode_image(image)
        return picture_part(self._rows(decoded, Clock()), self.span(*decoded.rgb.shape[1::-1]))

    def span(self, width: int, height: int) -> Span:
        """Return the place of a picture of this size in a sequence."""
        return self.tower.span(width, height)

    @property
    def tokens_per_image(self) -> int:
        """Return the positions that a square picture takes; 0 without an mmproj file."""
        return 0 if self._tower is None else self._tower.span(1, 1).n_rows

    def stage_table(self) -> Stages:
        """Return a row for every array that a run of this pair computes, in order."""
        return Stages(stage for half in (self._tower, self._text) if half is not None for stage in half.stages())

    def stages(self) -> tuple[str, ...]:
        """Return the names of all arrays that a run of this pair computes, in order."""
        return tuple(stage.name for stage in self.stage_table())

    def types(self) -> dict[str, str]:
        """Return for each stage that is a product with a matrix the ggml type of that matrix."""
        return types([half.file for half in (self._text, self._tower) if half is not None], self.stage_table())

    def trace(self, *globs: str, sink: Sink | None = None) -> AbstractContextManager[Trace]:
        """Keep arrays by name, as numpy: `with model.trace("vision.*", "blk.3.*") as trace:`, see `Trace`.

        Without a name, everything but the attention weights: those are computed only for a name that says
        `kq_soft_max`. Raises ParameterError for a name that fits no stage."""
        return self.probed(Trace(globs or ("*",), self.ops, sink, self._head_sizes()))

    def _head_sizes(self) -> dict[str, int]:
        """Return the width of a head, by the beginning of the names of stages that have it."""
        sizes = {} if self._text is None else {"blk.": self._text.config.head_size}
        if self._tower is not None:
            sizes["vision."] = self._tower.config.width // self._tower.config.n_head
        return sizes

    def intervene(self, functions: Mapping[str, Edit]) -> AbstractContextManager[Edits]:
        """Put `function(x)`, or `function(x, at)`, in the place of x: `with model.intervene({"blk.3.out": function}):`

        It sees a prompt whole, whatever its length and however many pictures: `x[-1]` is the prompt's last position. In
        an answer it then sees one row for each token. `at` says which positions: see `At` and `Edits`."""
        return self.probed(Edits(functions, self.ops))

    @contextmanager
    def probed(self, probe: P) -> Iterator[P]:
        """Show everything that runs inside the block to `probe`. Raises ParameterError for an unknown name."""
        names = self.stages()
        for glob in probe.globs:
            if not any(fnmatchcase(name, glob) for name in names):
                some = f"{', '.join(names[:3])}, ... {names[-1]} ({len(names)} in all)"
                problem = f"fits none of this model's, which are {some}{nearest(glob, names)}"
                raise ParameterError("stage", repr(glob), problem)
        with self.probes.attached(probe):
            yield probe

    def check_finite(self) -> None:
        """Look from now on at every array: the first with NaN or infinity raises NumericsError, with its place.

        Without it only logits and rows of pictures are looked at, so that a run is not slowed down."""
        text, tower = (None if half is None else half.file.path for half in (self._text, self._tower))
        self.probes.add(RefuseNotFinite(self.ops, text, tower))

    def unembed(self, hidden: np.ndarray) -> np.ndarray:
        """Apply the final norm and the output matrix to hidden states of any layer.  (T, D) -> (T, V) float32"""
        return unembed(self.text, hidden)


def no_text() -> PromptError:
    """Return the error of a model without a decoder that is asked something."""
    return PromptError("model", "text", "loaded without a text model, so there is nothing to ask")
