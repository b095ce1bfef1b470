"""Render the pages of the studies: one HTML file each that contains everything and loads nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from ..html import data_uri, environment
from ..images.fit import PictureMap, Preprocessed
from .lens import Lens
from .overlay import ANCHORS, heat, over_whole, to_source

LEAST_ATTENTION, LEAST_LOST = 0.01, 0.1
"""Smallest upper end of a scale: smaller values do not deserve a colour."""


@dataclass(frozen=True, slots=True)
class Attended:
    """Holds an answer and its maps over one picture. A tokens, L layers, N rows of the picture."""

    picture: Preprocessed
    rgb: np.ndarray  # (height, width, 3) uint8: the source
    prompt: str
    answer: str
    pieces: tuple[str, ...]  # text of each token
    attention: np.ndarray  # (L, A, N) float32
    lost: np.ndarray  # (A, cells, cells) float32, nats
    settings: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "answer": self.answer,
            "tokens": list(self.pieces),
            "attention": over_whole(self.attention, self.picture).round(6).tolist(),
            "lost_nats": self.lost.round(6).tolist(),
        }


def attend_page(attended: Attended) -> str:
    """Render a page with tokens to click on, a layer to choose, and both maps over the source picture."""
    data = {
        "pieces": attended.pieces,
        "maps": {
            "attention": _rounded(over_whole(attended.attention, attended.picture)),
            "lost": _rounded(attended.lost),
        },
        "colours": ANCHORS,
        "least": {"attention": LEAST_ATTENTION, "lost": LEAST_LOST},
        **_geometry(attended.picture),
    }
    return _render("attend.html.jinja", data=data, attended=attended, picture=data_uri(attended.rgb))


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
        {"uri": data_uri(p.rgb), "positions": p.positions, "tiles": _tiles(p.picture), **_geometry(p.picture)}
        for p in lensed.pictures
    ]
    data = {
        "layers": lens.layers,
        "names": {str(token): name for token, name in lensed.names.items()},
        "tokens": lens.tokens.tolist(),
        "probabilities": _rounded(lens.probabilities),
        "pictures": [{key: value for key, value in p.items() if key != "uri"} for p in pictures],
        "colours": ANCHORS,
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
    maps = [heat(patched.rgbs[1], to_source(grid, picture), 0, 1) for grid in grids]
    titles = ("taken from", "put into")
    return _render(
        "patch.html.jinja",
        patched=patched,
        runs=list(zip(titles, map(data_uri, patched.rgbs), patched.prompts, patched.names, strict=True)),
        maps=list(zip(patched.stages, map(data_uri, maps), strict=True)),
        colours=", ".join(f"rgb{colour}" for colour in ANCHORS),
        rows=[
            (stage, row[:-2].max(), row[-2], row[-1])
            for stage, row in zip(patched.stages, patched.effects, strict=True)
        ],
    )


def _geometry(picture: Preprocessed) -> dict[str, Any]:
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
    source = (files("llava_ref") / "assets" / name).read_text("utf-8")
    return environment().from_string(source).render(**values)
