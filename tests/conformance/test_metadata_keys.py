"""Every metadata key: what docs/metadata.md says of it is measured again, and this project ends where the others do."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.metadata import effects as metadata_effects
from llava_ref.conformance.metadata.effects import (
    Outcome,
    effect,
    files,
    here,
    llama_cpp,
    moved,
    transformers,
    unchanged,
)
from llava_ref.conformance.metadata.keys import Base, KeyRow, rows
from llava_ref.conformance.pairs.pairs import Random, TextSpec, VisionSpec, text_metadata, text_tensors
from llava_ref.conformance.pairs.writing import write
from llava_ref.errors import GGUFError
from llava_ref.profiles import PROFILES, resolve

from .reference_cases import build, model_of

reason = oracle.missing() or reference_hf.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
PAGE = (Path(__file__).parents[2] / "docs/metadata.md").read_text("utf-8")
ROWS = {row.name: row for row in rows()}
ENGINES = {"llama.cpp": llama_cpp, "hf": transformers}
BOUNDS = {"llama.cpp": {"tower": 2e-3}, "hf": {}}  # llama.cpp reads GELU from a table of float16


def recorded(row: KeyRow) -> dict[str, float | str]:
    """What the page says of both engines."""
    start = metadata_effects.line(row, "", "").partition("|  |")[0]
    (line,) = [line for line in PAGE.splitlines() if line.startswith(start)]
    cells = [cell.strip() for cell in line.removeprefix(start).strip("|").split("|")]
    assert cells[2] == (f"quirk `{row.quirk}`" if row.quirk else row.fate)
    return {name: _number(cell) for name, cell in zip(ENGINES, cells, strict=False)}


def _number(cell: str) -> float | str:
    return float(cell) if re.fullmatch(r"[\d.e+-]+", cell) else cell


def test_the_page_has_every_row_once() -> None:
    assert len(ROWS) == len(list(rows()))
    for row in ROWS.values():
        recorded(row)
    assert len(re.findall(r"^\| `(?:llama|clip|tokenizer|general)\.", PAGE, re.MULTILINE)) == len(ROWS)


def test_every_key_that_the_gguf_package_knows_has_a_row() -> None:
    import gguf.constants

    known = set(_constants(gguf.constants.Keys))
    ours = {row.key for row in ROWS.values()} | set(named_by_the_pairs())
    wanted = {
        key.replace("{arch}", "llama") for key in known if key.startswith(("{arch}.", "clip.", "tokenizer.ggml."))
    }
    wanted = {key for key in wanted if not key.startswith("clip.audio.") and "{" not in key}
    assert not wanted - ours


def named_by_the_pairs() -> set[str]:
    """Keys that every pair of the suite has, so that all of it is about them."""
    return {f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type")}


def _constants(group: Any) -> list[str]:
    found: list[str] = []
    for value in vars(group).values():
        found += (
            [value] if isinstance(value, str) and "." in value else _constants(value) if isinstance(value, type) else []
        )
    return found


def test_every_key_that_llama_cpp_knows_has_a_row() -> None:
    """The names as they stand in its library: `%s.` is an architecture, `clip.%s.` a tower. Tensors have names too."""
    from llava_ref.conformance.engines.llama_cpp.library import shared_object

    library, name = shared_object().read_bytes(), rb"([a-z0-9_]+(?:\.[a-z0-9_]+)*)\0"
    keys = {f"llama.{found.decode()}" for found in re.findall(rb"(?<![\w.])%s\." + name, library)}
    keys |= {f"clip.vision.{found.decode()}" for found in re.findall(rb"clip\.(?:%s|vision)\." + name, library)
             if b"clip" not in found}  # fmt: skip
    keys |= {f"tokenizer.ggml.{found.decode()}" for found in re.findall(rb"tokenizer\.ggml\." + name, library)}
    assert len(keys) > 200 and not keys - {row.key for row in ROWS.values()} - named_by_the_pairs() - TENSORS


TENSORS = {"llama.proj_query", "llama.position_embd.weight"}


STILL = [row for row in ROWS.values() if set(recorded(row).values()) == {0}]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_moves_nothing_moves_nothing_together(engine: str) -> None:
    """All such rows of a base, in as few files as there are values of one key."""
    groups: dict[tuple[Base, int], list[KeyRow]] = defaultdict(list)
    for i, row in enumerate(STILL):
        groups[row.base, sum((row.base, row.key) == (other.base, other.key) for other in STILL[:i])].append(row)
    for group in groups.values():
        assert effect(ENGINES[engine], group) == 0, [row.name for row in group]


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row not in STILL])
def test_what_moves_the_outcome(name: str, tmp_path: Path) -> None:
    row, said = ROWS[name], recorded(ROWS[name])
    changed = files(tmp_path, row.base, [row])
    for engine, run in ENGINES.items():
        outcome = run(changed, row.base)
        found = moved(outcome, unchanged(ENGINES[engine], row.base))
        assert found == (said[engine] if isinstance(said[engine], str) else pytest.approx(said[engine], rel=0.06))
        if outcome is not None and row.fate == "obeyed" and refusal(row, changed) is None:
            assert close(here(changed, row.base, engine), outcome, engine, row.base)


def close(ours: Outcome, theirs: Outcome, engine: str, base: Base) -> bool:
    if isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray):
        return float(moved(ours, theirs)) < BOUNDS[engine].get(base, 2e-5)
    return ours == theirs


def refusal(row: KeyRow, changed: Any) -> GGUFError | None:
    """Why this project refuses the file, in any profile, or None."""
    try:
        here(changed, row.base, "llava")
    except GGUFError as error:
        return error
    return None


@pytest.mark.parametrize("name", ROWS)
def test_here(name: str, tmp_path: Path) -> None:
    """Refused by its name; or nothing moves; or it does, in the profiles that obey it."""
    row, said = ROWS[name], recorded(ROWS[name])
    changed, why = files(tmp_path, row.base, [row]), None
    why = refusal(row, changed)
    if row.fate == "refused":
        assert why is not None and (why.field == row.key or why.field.startswith("v.blk.3."))
    elif why is not None:
        assert row.fate == "obeyed" and not row.quirk and "refuses" in said.values()
    else:
        for profile in PROFILES:
            obeyed = row.fate == "obeyed" and (not row.quirk or obeys(row.quirk, profile))
            before = unchanged(PROFILE_ENGINES[profile], row.base)
            assert (moved(here(changed, row.base, profile), before) != 0) == obeyed, profile


def obeys(quirk: str, profile: str) -> bool:
    return getattr(resolve(profile), quirk) in ("honour", "append")


PROFILE_ENGINES = {profile: lambda f, base, profile=profile: here(f, base, profile) for profile in PROFILES}


@pytest.mark.parametrize("prompt", ["what is <image>\nthe color", "the color <image>", "<image>"])
def test_eos_behind_a_prompt_with_pictures(prompt: str, tmp_path: Path) -> None:
    case, text = (
        build(tmp_path, TextSpec(n_layer=1), VisionSpec(n_block=1, feature_layer=1), prompt),
        TextSpec(n_layer=1),
    )
    keys = {**text_metadata(text), "tokenizer.ggml.add_eos_token": True}
    write(case.text, keys, text_tensors(text, Random(0, 1.0)))
    for engine, profile in ((LlamaCpp(), "llama.cpp"), (Transformers(), "hf")):
        ids = engine.run(case).token_ids
        assert ids[-1] == 2 and ids == tuple(model_of(case, profile).raw_request(case.prompt, case.images).token_ids)


def test_every_quirk_about_a_key_is_in_the_table() -> None:
    assert {row.quirk for row in ROWS.values()} - {None} == {"window", "attention_scale", "yarn_keys", "end_token"}
    assert set(get_args(Base)) == {row.base for row in ROWS.values()}
