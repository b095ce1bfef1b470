"""The table of products: what is measured, and how it gets into its page. llama.cpp is not needed."""

import numpy as np
import pytest

from llava_ref.conformance.engines.ggml.table import (
    BEGIN,
    END,
    SHAPES,
    ProductErrors,
    between_markers,
    markdown,
    products,
    with_table,
)
from llava_ref.gguf.types import TYPES


@pytest.mark.parametrize("old", ["", "| a |\n|---|\n"])
def test_a_table_takes_the_place_of_the_last_one(old):
    table = markdown([ProductErrors("Q8_0", "Q8_0", 4.9e-7, 7.6e-3)])
    page = with_table(f"# Title\n{BEGIN}{old}{END}\nmore\n", table)
    assert page == f"# Title\n{BEGIN}{table}{END}\nmore\n"
    assert between_markers(page).splitlines()[-1] == "| Q8_0 | Q8_0 | 4.9e-07 | 7.6e-03 |"


@pytest.mark.parametrize("kind", ["F16", "Q4_1", "IQ1_M"])
def test_products_are_the_same_every_time_and_of_every_shape(kind):
    first, again = list(products(kind)), list(products(kind))
    for a, b in zip(first, again, strict=True):
        assert (a.weights == b.weights).all() and (a.x == b.x).all()
    size, weights = TYPES[kind].bytes, TYPES[kind].weights
    shapes = {(len(p.x), len(p.weights), p.weights.shape[1] // size * weights) for p in first}
    assert shapes == set(SHAPES) and {p.x.shape[1] for p in first} == {K for _, _, K in SHAPES}
    assert {1, 7, 65} <= {T for T, _, _ in SHAPES}
    assert len({p.weights.tobytes()[:64] for p in first}) == len(first)
    assert max(np.abs(p.x).max() for p in first) > 9  # outliers
