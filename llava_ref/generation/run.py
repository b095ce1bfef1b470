"""One pass over a prompt, with everything that was kept of it.   T positions, V vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..images.fit import Preprocessed
from ..tokenizer.tokenizer import Tokenizer
from ..tracing.trace import Trace
from .request import Request, counted


@dataclass(frozen=True, slots=True, eq=False)
class PromptRun:
    """Holds what `Llava.run` returns. Row i of the logits, string i and row i of a sequence's stages are position i."""

    request: Request
    logits: np.ndarray
    """(T, V) float32: row i predicts the token at position i + 1."""
    trace: Trace
    strings: tuple[str, ...]
    """A text for each position: `Llava.strings`."""

    @property
    def token_ids(self) -> list[int]:
        """Return the id at each position, -1 where a picture stands."""
        return self.request.token_ids

    def positions(self, image: int = 0) -> list[int]:
        """Return the position of each row of a picture."""
        return self.request.positions(image)

    def __repr__(self) -> str:
        return f"<{self._figures()}, {self.trace!r}>"

    def _figures(self) -> str:
        T, V = self.logits.shape
        return f"PromptRun of {T} positions, {counted(len(self.request.images))}: logits [{T}, {V}]"

    def _repr_html_(self) -> str:
        return f"<div>{self._figures()}</div>{self.trace._repr_html_()}"


def position_strings(request: Request, pictures: Sequence[Preprocessed], tokenizer: Tokenizer) -> list[str]:
    """Return a text for each position of a prompt; `pictures`: the request's, as the tower takes them."""
    rows = [
        iter(_row_strings(index, picture, span.n_rows) if span.n_seen is None else [f"<image {index}>"])
        for index, (picture, span) in enumerate(zip(pictures, request.spans, strict=True))
    ]
    places = [index for index, span in enumerate(request.spans) for _ in range(span.n_rows)]
    found, order = [], iter(places)
    for token in request.token_ids:
        found.append(tokenizer.label(token) if token >= 0 else next(rows[next(order)]))
    return found


def _row_strings(index: int, picture: Preprocessed, n_rows: int) -> list[str]:
    """Name a picture's rows by their places. A row that stands for no place ends a line."""
    found = [f"<image {index} line end>"] * n_rows
    for number, tile in enumerate(picture.tiles):
        name = f"image {index}" if len(picture.tiles) == 1 else f"image {index} tile {number}"
        for (y, x), row in np.ndenumerate(tile.rows):
            if row >= 0:
                found[row] = f"<{name} row {y}, col {x}>"
    return found
