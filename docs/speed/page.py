"""Write the tables and plots of docs/speed.md from the figures that are kept beside it."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plots import Series, bars, lines

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "speed.md"
PACKAGES = ("llava-ref", "python", "torch", "numpy", "numba", "llvmlite")
Kept = dict[str, Any]
"""What is kept of a table: `rows`, `facts` (the machine) and `settings`."""


def write(machines: dict[str, dict[str, Kept]]) -> None:
    """Replace the page's blocks by the tables that are kept of each machine, and draw their plots."""
    page = PAGE.read_text()
    assert not (unknown := {name for kept in machines.values() for name in kept} - WORDS.keys()), unknown
    for name in WORDS:
        block = re.compile(rf"(<!-- {name}: written by docs/speed -->\n).*?(<!-- end -->)", re.DOTALL)
        assert block.search(page), f"the page has no place for {name}"
        words, plots = "\n", dict[str, str]()
        for machine, kept in machines.items():
            if name in kept:
                drawn = {f"{machine}-{file}": svg for file, svg in PLOTS.get(name, _none)(kept[name]).items()}
                shown = "".join(f"![{file.removesuffix('.svg')}](speed/{file})\n\n" for file in drawn)
                words += f"{WORDS[name](kept[name])}\n{shown}{_source(kept[name])}\n\n"
                plots |= drawn
        page = block.sub(lambda found, words=words: found[1] + words + found[2], page)  # type: ignore[misc]
        for file, svg in plots.items():
            (FOLDER / file).write_text(svg)
    PAGE.write_text(page)


def _none(kept: Kept) -> dict[str, str]:
    return {}


def _source(kept: Kept) -> str:
    """Say where and when a table was measured, and how disturbed."""
    f, s, rows = kept["facts"], kept["settings"], kept["rows"]
    sets = ", ".join(name.upper().replace("_", "-") for name in f["sets"])
    cache = f"{f['last_cache_mb']:.0f} MB of last cache, " if f["last_cache_mb"] else ""
    machine = f"{f['processor']} ({sets}; {cache}{f['memory_gb']:.0f} GB), {s['threads']} threads, {f['system']}"
    packages = ", ".join(f"{name} {f[name]}" for name in PACKAGES if name in f)
    rivals = {
        f"llama.cpp (ggml {r['ggml']}: {r['system']})" for row in rows if "ggml" in (r := row.get("reference") or {})
    }
    versions = "; ".join([packages, *sorted(rivals)])
    noisy = sum(row.get("noisy") or 0 for row in rows)
    noise = f" Noisy: {noisy} of the repetitions." if noisy else ""
    return f"<sub>{f['date']}, precision `{s['precision']}`, {machine}; {versions}.{noise}</sub>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines_ = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines_) + "\n"


def _g(value: float | None, form: str = ".3g") -> str:
    """Format a figure; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if form == ".3g" and value >= 1000 else f"{value:{form}}"


def _name(row: Kept) -> str:
    return str(row["model"]).removesuffix(".gguf")


def _both(row: Kept, key: str) -> list[str]:
    """Return this project's figure, llama.cpp's, and the ratio in bold."""
    theirs, ratio = row.get("reference") or {}, row.get("ratio") or {}
    found = ratio.get(key)
    return [_g(row[key]), _g(theirs.get(key)), "–" if found is None else f"**{found:.2f}**"]


def decoders(kept: Kept) -> str:
    head = (
        "model",
        "prefill tok/s",
        "llama.cpp",
        "ratio",
        "decode tok/s",
        "llama.cpp",
        "ratio",
        "of the floor",
        "read GB/s",
    )
    rows = []
    for row in kept["rows"]:
        share = "–" if row["floor_share"] is None else f"{row['floor_share']:.0%}"
        memory = [share, _g(row["read_gb_s"])]
        rows.append([_name(row), *_both(row, "prefill_tok_s"), *_both(row, "decode_tok_s"), *memory])
    return _table(head, rows)


def decoder_plots(kept: Kept) -> dict[str, str]:
    found = {}
    for key, title in (
        ("decode_tok_s", "Decoding, tokens a second"),
        ("prefill_tok_s", "A prompt of 512, tokens a second"),
    ):
        rows = [row for row in kept["rows"] if not _name(row).startswith("SmolLM2")]
        series = [Series("this project", [row[key] for row in rows]), Series("llama.cpp", _theirs(rows, key))]
        found[f"{key.partition('_')[0]}.svg"] = bars(title, [_name(row) for row in rows], series)
    return found


def _theirs(rows: Sequence[Kept], key: str) -> list[float | None]:
    return [(row.get("reference") or {}).get(key) for row in rows]


def tower(kept: Kept) -> str:
    rows = [[stage, *_both(row, key)] for row in kept["rows"] for stage, key in STAGES.items()]
    return _table(("", "this project, s", "llama.cpp, s", "ratio"), rows)


STAGES = {"picture preprocessed": "preprocess_s", "picture encoded": "encode_s"}


def answer(kept: Kept) -> str:
    (row,) = kept["rows"]
    theirs = row.get("reference")
    ours = _seconds(row, row)
    parts = [[stage, *_beside(s, _seconds(row, theirs)[stage] if theirs else None)] for stage, s in ours.items()]
    return _table(("", "this project, s", "llama.cpp, s", "ratio"), parts)


def _seconds(row: Kept, side: Kept) -> dict[str, float]:
    """Return the seconds of every stage of an answer, and their sum."""
    found = {
        "picture, 576 positions": side["preprocess_s"] + side["encode_s"],
        f"prompt of {row['n_prompt']} positions": row["n_prompt"] / side["prefill_tok_s"],
        f"{row['n_gen']} tokens": row["n_gen"] / side["decode_tok_s"],
    }
    return found | {"first token": sum(list(found.values())[:2]), "whole answer": sum(found.values())}


def _beside(ours: float, theirs: float | None, *, faster: bool = False) -> list[str]:
    """Return seconds, or with `faster` speeds, of both, and how many times better ours is."""
    if theirs is None:
        return [_g(ours), "–", "–"]
    return [_g(ours), _g(theirs), f"**{ours / theirs if faster else theirs / ours:.2f}**"]


def contexts(kept: Kept) -> str:
    head = ("positions", "prefill tok/s", "llama.cpp", "ratio", "decode tok/s behind", "llama.cpp", "ratio")
    rows = [[f"{r['n_prompt']:,}", *_both(r, "prefill_tok_s"), *_both(r, "decode_tok_s")] for r in kept["rows"]]
    return _table(head, rows)


def context_plots(kept: Kept) -> dict[str, str]:
    rows, found = kept["rows"], {}
    for key, title in (
        ("decode_tok_s", "Tokens a second behind a prompt"),
        ("prefill_tok_s", "Tokens a second of a prompt"),
    ):
        series = [Series("this project", [row[key] for row in rows]), Series("llama.cpp", _theirs(rows, key))]
        drawn = lines(title, "positions of the prompt", [row["n_prompt"] for row in rows], series)
        found[f"context-{key.partition('_')[0]}.svg"] = drawn
    return found


def pictures(kept: Kept) -> str:
    rows = [
        [
            str(r["pictures"]),
            f"{r['positions']:,}",
            _g(r["encode_s"]),
            _g(r["prefill_s"]),
            _g(r["encode_s"] + r["prefill_s"]),
        ]
        for r in kept["rows"]
    ]
    return _table(("pictures", "positions", "encoded, s", "run, s", "to the first token, s"), rows)


def sequences(kept: Kept) -> str:
    head = ("model", "sequences at once", "tok/s together", "llama.cpp", "ratio", "of one alone")
    alone = {row["model"]: row["tok_s"] for row in reversed(kept["rows"])}
    rows = []
    for row in kept["rows"]:
        speeds = _beside(row["tok_s"], (row.get("reference") or {}).get("tok_s"), faster=True)
        rows.append([_name(row), str(row["sequences"]), *speeds, f"{row['tok_s'] / alone[row['model']]:.2f}x"])
    return _table(head, rows)


def kernels(kept: Kept) -> str:
    head = ("kernel", "GB/s", "read GB/s", "share", "10^9 a second", "of")
    return _table(head, [[r["kernel"], *_beside_reading(r), _g(r["g_s"]), r["unit"]] for r in kept["rows"]])


def _beside_reading(row: Any) -> tuple[str, str, str]:
    """Show what a kernel reads; nothing where its bytes do not matter."""
    if not row["gb_s"]:
        return "", "", ""
    return _g(row["gb_s"]), _g(row["read_gb_s"]), f"{row['gb_s'] / row['read_gb_s']:.0%}"


WORDS: dict[str, Callable[[Kept], str]] = {
    "decoders": decoders,
    "tower": tower,
    "answer": answer,
    "contexts": contexts,
    "pictures": pictures,
    "sequences": sequences,
    "kernels": kernels,
}
PLOTS: dict[str, Callable[[Kept], dict[str, str]]] = {
    "decoders": decoder_plots,
    "contexts": context_plots,
}
