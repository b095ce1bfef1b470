"""Keys that only some families read: what docs/metadata.md says of each is measured again, and this project obeys each
as the engines do."""

from pathlib import Path
from typing import Any

import pytest

from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.metadata.families import ROWS, case, effect, line, logits
from llava_ref.models import dynamic_tiles, gemma3, named_tiles, pixtral, qwen2, qwen2vl, siglip
from llava_ref.tracing.distance import rel_rms

from .reference_cases import model_of

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
PAGE = (Path(__file__).parents[2] / "docs" / "metadata.md").read_text("utf-8")
BOUNDS = {"llama.cpp": 5e-3, "hf": 2e-5}


def recorded(row: Any) -> list[str]:
    start = f"| {row.family} | `{row.key}` |"
    (found,) = [line for line in PAGE.splitlines() if line.startswith(start)]
    return found.split(" | ")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_page_says_what_is_measured_and_here_it_is_the_same(row: Any, tmp_path: Path) -> None:
    c = case(tmp_path, row.family, row)
    found = {engine: effect(engine, row, c) for engine in BOUNDS}
    for said, value in zip(recorded(row)[3:5], found.values(), strict=True):
        assert said == value if isinstance(value, str) else float(said) == pytest.approx(value, rel=0.06)
    assert recorded(row)[5] == line(row, *found.values()).split(" | ")[5]
    for engine, bound in BOUNDS.items():
        if found[engine] != "aborts":
            model = model_of(c, engine)
            ours = model.request_logits(model.raw_request(c.prompt, c.images))
            assert rel_rms(ours, logits(engine, c)) < bound


def test_every_key_that_a_family_reads_itself_has_a_row() -> None:
    own = {
        named_tiles.LONGEST, *dynamic_tiles.KEYS, siglip.MERGE, pixtral.MERGE, qwen2vl.PATTERN,
        f"qwen2vl.{qwen2.SECTIONS}", f"gemma3.{gemma3.PATTERN}", f"gemma3.{gemma3.LOCAL_BASE}",
    }  # fmt: skip
    assert own <= {row.key for row in ROWS}
