"""The golden bundles run by llama.cpp and transformers: every one is confirmed, and a wrong one would not be."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava_ref.conformance.bundles import cli as golden
from llava_ref.conformance.bundles.bundle import Bundle
from llava_ref.conformance.bundles.confirm import confirm
from llava_ref.conformance.bundles.recipes import bundles
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.reference import ReferenceError as Refuted

reasons = [reason for reason in (oracle.missing(), reference_hf.missing()) if reason]
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reasons), reason="; ".join(reasons))]
SET = Path(__file__).parents[2] / "conformance" / "golden"
BUNDLES = {bundle.name: bundle for bundle in bundles()}


def case_of(folder: Path) -> dict[str, Any]:
    case: dict[str, Any] = json.loads((folder / "case.json").read_text("utf-8"))
    return case


@pytest.mark.parametrize("name", BUNDLES)
def test_every_bundle(within: Any, name: str) -> None:
    found = confirm(SET / name, BUNDLES[name], case_of(SET / name))
    assert found
    for said in found:
        engine = said.by.split()[0]
        within(f"golden bundles, {engine}, whole runs, bound of {said.limit:g}", said.worst, said.limit)
        if said.alone is not None:
            within(f"golden bundles, {engine}, each stage from its own inputs and rounding", said.alone, 2e-6)
    published = json.loads((SET / "manifest.json").read_text("utf-8"))["bundles"][name]["confirmed"]
    assert [by["by"].split()[0] for by in published] == [said.by.split()[0] for said in found]
    assert [by["stages"] for by in published] == [said.stages for said in found]


def remade(folder: Path, bundle: Bundle, *, text: dict[str, Any] | None = None) -> Path:
    """Copy a published bundle and make its models again with other settings."""
    shutil.copytree(SET / bundle.name, folder, dirs_exist_ok=True)
    golden.make(folder, replace(bundle, text=replace(bundle.text, **(text or {}))))
    return folder


@pytest.mark.parametrize("name, text, stage", [
    ("llava-wide", {"rope_base": 10100.0}, "blk.0.Qcur_rope"),
    ("hf-wide", {"eps": 0.045}, "blk.0.attn_norm"),
    ("llama.cpp-tall", {"rope_scaling": None}, "blk.0.Qcur_rope"),
    ("type-mxfp4", {"kind": "Q4_0"}, "embd"),
])  # fmt: skip
def test_a_wrong_bundle_is_refuted(tmp_path: Path, name: str, text: dict[str, Any], stage: str) -> None:
    folder = remade(tmp_path, BUNDLES[name], text=text)
    with pytest.raises(Refuted, match=rf": {stage}: rel_rms .* over"):
        confirm(folder, BUNDLES[name], case_of(folder))


def test_other_tokens_are_refuted(tmp_path: Path) -> None:
    bundle = BUNDLES["llava-wide"]
    folder = remade(tmp_path, bundle)
    case = case_of(folder)
    for field, value in (("token_ids", case["token_ids"][1:]), ("greedy", case["greedy"][::-1])):
        with pytest.raises(Refuted, match=f": {field}: .*the bundle has"):
            confirm(folder, bundle, case | {field: value})


def test_what_is_confirmed_is_written_down(tmp_path: Path) -> None:
    golden.write(tmp_path, [BUNDLES["type-q8_0"]])
    row = json.loads((tmp_path / "manifest.json").read_text("utf-8"))["bundles"]["type-q8_0"]
    assert row["confirmed"] == []
    golden.confirm(tmp_path, [BUNDLES["type-q8_0"]])
    (said,) = json.loads((tmp_path / "manifest.json").read_text("utf-8"))["bundles"]["type-q8_0"]["confirmed"]
    assert said["by"] == "llama.cpp b11549 EXACT" and said["stages"] == 8 and said["limit"] == 0.06
    assert 1e-3 < said["worst"] < 0.06 and said["alone"] < 2e-6
