"""Pages of the studies: one HTML file each, with everything in it, that loads nothing from anywhere."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from ..html import data_uri, environment
from ..images.fit import Preprocessed
from .lens import Lens
from .overlay import ANCHORS, heat, to_source

LEAST_ATTENTION, LEAST_LOST = 0.01, 0.1
"""A scale reaches at least so far: below that nothing worth a colour happens."""


@dataclass(frozen=True, slots=True)
class Attended:
    """An answer over one picture. A tokens, L layers; the maps are in the patches' order, row by row."""

    picture: Preprocessed
    rgb: np.ndarray  # (height, width, 3) uint8: the source
    prompt: str
    answer: str
    pieces: tuple[str, ...]  # what each token shows
    attention: np.ndarray  # (L, A, grid, grid) float32
    lost: np.ndarray  # (A, cells, cells) float32, nats
    settings: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "answer": self.answer,
            "tokens": list(self.pieces),
            "attention": self.attention.round(6).tolist(),
            "lost_nats": self.lost.round(6).tolist(),
        }


def attend_page(attended: Attended) -> str:
    """Tokens to click on, a layer to choose, both maps over the source picture."""
    data = {
        "pieces": attended.pieces,
        "maps": {"attention": _rounded(attended.attention), "lost": _rounded(attended.lost)},
        "colours": ANCHORS,
        "least": {"attention": LEAST_ATTENTION, "lost": LEAST_LOST},
        **_geometry(attended.picture),
    }
    return _render(
        "attend.html.jinja", data=data, attended=attended, picture=data_uri(attended.rgb), settings=attended.settings
    )


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a prompt, and where its rows stand."""

    picture: Preprocessed
    rgb: np.ndarray
    first: int  # position of its first row
    grid: int  # patches along a side


@dataclass(frozen=True, slots=True)
class Lensed:
    """A lens with the words to show it."""

    lens: Lens
    names: dict[int, str]  # what each token in it shows
    n_prompt: int  # positions of the prompt; the answer's are behind
    pictures: tuple[Picture, ...]
    prompt: str
    answer: str
    settings: dict[str, Any]

    @property
    def text_positions(self) -> list[int]:
        return [at for at, token in enumerate(self.lens.token_ids) if token >= 0]


def lens_page(lensed: Lensed) -> str:
    """Layers by positions of text as a table; pictures' positions as grids over them, a layer at a time."""
    lens = lensed.lens
    pictures = [
        {"uri": data_uri(p.rgb), "first": p.first, "grid": p.grid, **_geometry(p.picture)} for p in lensed.pictures
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
    """A sweep over two runs, the source and the one it is put into."""

    pictures: tuple[Preprocessed, ...]
    rgbs: tuple[np.ndarray, ...]
    prompts: tuple[str, str]
    names: tuple[str, str]  # the first token that each would say
    stages: tuple[str, ...]
    effects: np.ndarray  # (stages, cells * cells + 2): parts of the picture, the text, the last position
    cells: int
    settings: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        maps = self.effects[:, :-2].reshape(-1, self.cells, self.cells)
        rest = {"text": self.effects[:, -2].tolist(), "last": self.effects[:, -1].tolist()}
        return {"tokens": self.names, "stages": self.stages, "picture": maps.tolist(), **rest}


def patch_page(patched: Patched) -> str:
    """Both runs, a map of the picture for each stage, and the text positions as a table."""
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
    a = picture.affine
    return {
        "size": picture.seen.shape[0],
        "source": picture.source,
        "affine": [a.scale_x, a.scale_y, a.shift_x, a.shift_y],
    }


def _rounded(x: np.ndarray) -> Any:
    """Five figures are more than a page shows."""
    return np.vectorize(lambda value: float(f"{value:.5g}"))(x).tolist()


def _render(name: str, **values: Any) -> str:
    source = (files("llava_ref") / "assets" / name).read_text("utf-8")
    return environment().from_string(source).render(**values)
