"""docs/speed.md is what its script makes of the figures that are kept, and its plots are too."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = sorted((DOCS / "speed" / "results").glob("*.json"))
BLOCK = re.compile(r"(<!-- (\w+): written by docs/speed -->\n)(.*?)(<!-- end -->)", re.DOTALL)
measured = pytest.mark.skipif(not RESULTS, reason="nothing has been measured for docs/speed.md yet")

FACTS = {
    "date": "2026-11-27", "processor": "A processor", "processors": 2, "sets": ["avx2", "amx_int8"],
    "last_cache_mb": 300, "memory_gb": 25.0, "system": "Linux", "python": "3.11", "llava-ref": "0.1", "torch": "2",
    "numpy": "2", "llvmlite": "0",
}  # fmt: skip
THEIRS = {
    "preprocess_s": 0.5,
    "encode_s": 3.0,
    "prefill_tok_s": 100.0,
    "decode_tok_s": 8.0,
    "ggml": "0.25",
    "system": "AVX2",
}
OURS = {"preprocess_s": 0.25, "encode_s": 1.5, "prefill_tok_s": 160.0, "decode_tok_s": 10.0}
RATIO = {"preprocess_s": 2.0, "encode_s": 2.0, "prefill_tok_s": 1.6, "decode_tok_s": 1.25}
ROW = {
    "model": "7b.gguf", "n_prompt": 640, "n_gen": 40, "read_gb_s": 20.0, "floor_share": 0.625, "noisy": 0, **OURS,
    "reference": THEIRS, "ratio": RATIO,
}  # fmt: skip
ROWS = {
    "decoders": [ROW, ROW | {"model": "1b.gguf", "reference": None, "ratio": None}],
    "tower": [ROW],
    "answer": [ROW],
    "contexts": [ROW | {"n_prompt": n} for n in (256, 1024, 4096)],
    "pictures": [{"pictures": 4, "positions": 2368, "encode_s": 6.0, "prefill_s": 8.5, "noisy": 1}],
    "sequences": [
        {"model": "7b.gguf", "sequences": n, "tok_s": speed, "reference": {"tok_s": 10.0}}
        for n, speed in ((1, 20.0), (8, 50.0))
    ],
    "kernels": [{"kernel": "matvec Q4_K", "gb_s": 15.0, "read_gb_s": 20.0, "g_s": 26.7, "unit": "weights"}],
}  # fmt: skip
SETTINGS = {"precision": "fast", "threads": 2}


def written(folder, results):
    """Write the page and its plots in a folder, from figures; return the page's blocks."""
    shutil.copytree(DOCS / "speed", folder / "speed", ignore=shutil.ignore_patterns("*.svg", "*.json"))
    text = (DOCS / "speed.md").read_text()
    (folder / "speed.md").write_text(BLOCK.sub(r"\1\4", text))
    for machine, kept in results.items():
        (folder / "speed" / "results" / f"{machine}.json").write_text(json.dumps(kept))
    subprocess.run([sys.executable, str(folder / "speed"), "--write"], check=True)
    return {found[2]: found[3] for found in BLOCK.finditer((folder / "speed.md").read_text())}


def test_every_table_says_what_was_measured(tmp_path):
    kept = {name: {"facts": FACTS, "settings": SETTINGS, "rows": rows} for name, rows in ROWS.items()}
    blocks = written(tmp_path, {"one": kept})
    assert blocks.keys() == ROWS.keys()
    assert "| 7b | 160 | 100 | **1.60** | 10 | 8 | **1.25** | 62% | 20 |" in blocks["decoders"]
    assert "| 1b | 160 | – | – | 10 | – | – | 62% | 20 |" in blocks["decoders"]
    assert "| picture encoded | 1.5 | 3 | **2.00** |" in blocks["tower"]
    assert "| first token | 5.75 | 9.9 | **1.72** |" in blocks["answer"]
    assert "| whole answer | 9.75 | 14.9 | **1.53** |" in blocks["answer"]
    assert "| 4,096 | 160 | 100 | **1.60** | 10 | 8 | **1.25** |" in blocks["contexts"]
    assert (
        "| 4 | 2,368 | 6 | 8.5 | 14.5 |" in blocks["pictures"] and "Noisy: 1 of the repetitions." in blocks["pictures"]
    )
    assert "| 7b | 8 | 50 | 10 | **5.00** | 2.50x |" in blocks["sequences"]
    assert "| matvec Q4_K | 15 | 20 | 75% | 26.7 | weights |" in blocks["kernels"]
    assert all("A processor (AVX2, AMX-INT8; 300 MB of last cache, 25 GB)" in block for block in blocks.values())
    assert "llama.cpp (ggml 0.25: AVX2)" in blocks["tower"]


def test_bars_are_as_long_as_figures_are_large(tmp_path):
    written(tmp_path, {"one": {"decoders": {"facts": FACTS, "settings": SETTINGS, "rows": ROWS["decoders"]}}})
    page = (tmp_path / "speed.md").read_text()
    root = ElementTree.parse(tmp_path / "speed" / "one-decode.svg").getroot()
    bars = [float(r.get("width")) for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("height") == "13"]
    assert len(bars) == 3 and bars[1] / bars[0] == pytest.approx(0.8, rel=1e-3), "ours, theirs; the other has one"
    assert "(speed/one-decode.svg)" in page and "(speed/one-prefill.svg)" in page


@measured
def test_the_page_is_what_the_figures_say(tmp_path):
    written(tmp_path, {path.stem: json.loads(path.read_text()) for path in RESULTS})
    assert (tmp_path / "speed.md").read_text() == (DOCS / "speed.md").read_text()
    plots = sorted(path.name for path in (DOCS / "speed").glob("*.svg"))
    assert plots == sorted(path.name for path in (tmp_path / "speed").glob("*.svg"))
    for name in plots:
        assert (tmp_path / "speed" / name).read_text() == (DOCS / "speed" / name).read_text()


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_what_is_kept_is_consistent_and_names_no_folder(path):
    kept = json.loads(path.read_text())
    for row in (row for table in kept.values() for row in table["rows"] if row.get("ratio")):
        for key in "prefill_tok_s", "decode_tok_s":
            assert row["ratio"][key] == pytest.approx(row[key] / row["reference"][key])
    assert not [word for word in path.read_text().split('"') if word.startswith(("/", "~"))]
