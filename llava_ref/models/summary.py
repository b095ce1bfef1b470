"""Say in a line what a half of a pair is."""

from collections import Counter
from math import prod

from ..gguf.file import GGUFFile
from .family import TextModel, Tower


def text_line(text: TextModel) -> str:
    c = text.config
    heads = f"{c.n_head} heads" + (f" over {c.n_head_kv} of keys and values" if c.n_head_kv != c.n_head else "")
    blocks = f"{c.n_layer} blocks of width {c.width}, {heads}, vocabulary {c.n_vocab:,}"
    return f"{c.architecture}: {blocks}; {_size(text.file)}"


def tower_line(tower: Tower) -> str:
    c = tower.config
    blocks = f"{c.n_stored} blocks of width {c.width}, {c.n_head} heads"
    return f"projector {c.projector}: {blocks}, patches of {c.patch_size} pixels; {_size(tower.file)}"


def _size(file: GGUFFile) -> str:
    """Return the number of weights, their bytes, and the types of them, the one with the most bytes first."""
    views, of_type = file.tensors.values(), Counter[str]()
    for view in views:
        of_type[view.type] += view.data.nbytes
    weights, n_bytes = sum(prod(view.shape) for view in views), of_type.total()
    types = ", ".join(name for name, _ in of_type.most_common())
    return f"{weights / 1e6:,.1f} M weights in {n_bytes / 1e6:,.1f} MB of {types}"
