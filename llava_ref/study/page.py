"""Render the pages of the studies: one HTML file each that contains everything and loads nothing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from ..html import asset, data_uri, environment
from ..images.fit import PictureMap, Preprocessed
from .lens import Lens
from .overlay import LOST, SHARE, heat, over_whole, to_source


@dataclass(frozen=True, slots=True)
class Attended:
    """Holds an answer and its maps over one picture. A tokens, L layers, H heads, N rows of the picture.

    `chosen` and `head` say which layer and head were asked for, None where none was."""

    picture: Preprocessed
    rgb: np.ndarray  # (height, width, 3) uint8: the source
    prompt: str
    answer: str
    pieces: tuple[str, ...]  # text of each token
    layers: tuple[int, ...]  # their numbers
    attention: np.ndarray  # (L, A, N) float32, mean over heads
    layer: int  # whose heads are kept
    heads: np.ndarray  # (H, A, N) float32
    lost: np.ndarray  # (A, cells, cells) float32, nats
    settings: dict[str, Any]
    chosen: int | None = None
    head: int | None = None

    def whole(self) -> tuple[np.ndarray, str]:
        """Return the attention asked for, mean over the answer's tokens, as one number for each row, and its name."""
        if self.chosen is None:
            return self.attention.mean((0, 1)), "mean over heads, layers and tokens"
        if self.head is None:
            return self.heads.mean((0, 1)), f"layer {self.layer}, mean over heads and tokens"
        return self.heads[self.head].mean(0), f"layer {self.layer}, head {self.head}, mean over tokens"

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "answer": self.answer,
            "tokens": list(self.pieces),
            "layers": self.layers,
            "attention": over_whole(self.attention, self.picture).round(6).tolist(),
            "heads": {"layer": self.layer, "attention": over_whole(self.heads, self.picture).round(6).tolist()},
            "lost_nats": self.lost.round(6).tolist(),
        }


MOST_SEEN = "Of all layers this one puts most of its attention on the picture; --layer chooses another."


def attend_page(a: Attended) -> str:
    """Render a page with tokens to click on, a layer or head to choose, and both maps over the source picture."""
    data = {
        "pieces": a.pieces,
        "layers": a.layers,
        "layer": a.layer,
        "head": a.head,
        "begin": -1 if a.chosen is None else a.layers.index(a.layer),
        "attention": _rounded(over_whole(a.attention, a.picture)),
        "heads": _rounded(over_whole(a.heads, a.picture)),
        "shares": _rounded(a.heads.sum(-1)),
        "lost": _rounded(a.lost),
        "measures": {"attention": asdict(SHARE), "lost": asdict(LOST)},
        "place": _place(a.picture),
    }
    why = MOST_SEEN if a.chosen is None else ""
    return _render("attend.html.jinja", data=data, attended=a, picture=data_uri(a.rgb), why=why)


@dataclass(frozen=True, slots=True)
class LensPicture:
    """Holds a picture of a prompt and the positions of its rows."""

    picture: Preprocessed
    rgb: np.ndarray
    positions: Sequence[int]  # of each row


@dataclass(frozen=True, slots=True)
class Lensed:
    """Holds a lens and the texts that its page shows."""

    lens: Lens
    names: dict[int, str]  # token id -> text, for every token in the lens
    n_prompt: int  # positions of the prompt; the answer's follow
    pictures: tuple[LensPicture, ...]
    prompt: str
    answer: str
    settings: dict[str, Any]

    @property
    def text_positions(self) -> list[int]:
        return [at for at, token in enumerate(self.lens.token_ids) if token >= 0]


def lens_page(lensed: Lensed) -> str:
    """Render layers by positions of text as a table, and each picture's positions as a grid, one layer at a time."""
    lens = lensed.lens
    pictures = [
        {"uri": data_uri(p.rgb), "positions": p.positions, "tiles": _tiles(p.picture), "place": _place(p.picture)}
        for p in lensed.pictures
    ]
    data = {
        "layers": lens.layers,
        "names": {str(token): name for token, name in lensed.names.items()},
        "tokens": lens.tokens.tolist(),
        "probabilities": _rounded(lens.probabilities),
        "pictures": [{key: value for key, value in p.items() if key != "uri"} for p in pictures],
    }
    return _render("lens.html.jinja", data=data, lensed=lensed, lens=lens, pictures=pictures)


@dataclass(frozen=True, slots=True)
class Patched:
    """Holds a sweep of patches from a source run into another run."""

    pictures: tuple[Preprocessed, ...]
    rgbs: tuple[np.ndarray, ...]
    prompts: tuple[str, str]
    names: tuple[str, str]  # the first token of each run's answer
    stages: tuple[str, ...]
    effects: np.ndarray  # (stages, cells * cells + 2): cells of the picture, the text, the last position
    cells: int
    settings: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        maps = self.effects[:, :-2].reshape(-1, self.cells, self.cells)
        rest = {"text": self.effects[:, -2].tolist(), "last": self.effects[:, -1].tolist()}
        return {"tokens": self.names, "stages": self.stages, "picture": maps.tolist(), **rest}


def patch_page(patched: Patched) -> str:
    """Render both runs, a map of the picture for each stage, and the text positions as a table."""
    picture, cells = patched.pictures[1], patched.cells
    grids = patched.effects[:, :-2].reshape(-1, cells, cells)
    maps = [heat(patched.rgbs[1], to_source(grid, picture), 1.0) for grid in grids]
    low = min(1.0, max(0.0, -float(grids.min())))
    low = low if low >= 0.005 else 0.0  # less rounds to 0 %
    titles = ("taken from", "put into")
    return _render(
        "patch.html.jinja",
        patched=patched,
        runs=list(zip(titles, map(data_uri, patched.rgbs), patched.prompts, patched.names, strict=True)),
        maps=list(zip(patched.stages, map(data_uri, maps), strict=True)),
        low=round(low, 3),
        zero=round(100 * low / (1 + low), 1),
        rows=[
            (stage, (row[:-2].max(), row[-2], row[-1]))
            for stage, row in zip(patched.stages, patched.effects.astype(float), strict=True)
        ],
    )


def _place(picture: Preprocessed) -> dict[str, Any]:
    """Return what map.js needs to lay numbers over a picture: sizes, and the way back to its pixels."""
    return {
        "size": picture.whole.seen.shape[1::-1],
        "source": picture.source,
        "affine": _numbers(picture.affine),
    }


def _tiles(picture: Preprocessed) -> list[dict[str, Any]]:
    """Return each tile's way back and rows, the tile that shows all of the picture first."""
    tiles = sorted(picture.tiles, key=lambda tile: tile is not picture.whole)
    return [{"affine": _numbers(tile.affine), "rows": tile.rows.tolist()} for tile in tiles]


def _numbers(a: PictureMap) -> list[float]:
    return [a.scale_x, a.scale_y, a.shift_x, a.shift_y]


def _rounded(x: np.ndarray) -> Any:
    """Round to five figures, more than a page shows."""
    return np.vectorize(lambda value: float(f"{value:.5g}"))(x).tolist()


def _render(name: str, **values: Any) -> str:
    script = Markup(asset("map.js"))  # our own file, in an inline module
    return environment().get_template(name).render(script=script, **values)
