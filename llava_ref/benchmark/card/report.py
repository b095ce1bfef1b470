"""Say what a card has answered: the card itself, a table, and everything as JSON."""

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...extras import absent
from .asking import ask_all
from .table import markdown
from .timing import Figures, Row, figures

PACKAGES = ("llava-ref", "torch", "triton", "transformers", "vllm")
CARD = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "clocks.max.memory")


def missing() -> str | None:
    """Return why nothing can be measured here; None where it can."""
    import torch

    if not torch.cuda.is_available():
        return "torch finds no CUDA device here, so there is nothing to measure"
    return absent("gpu", ["triton"])


def measured() -> dict[str, Any]:
    """Put all questions to the card; return what it answered."""
    from .catalogue import asked

    began, rows = time.monotonic(), list[Row]()
    for row in ask_all(asked()):
        print(f"{row.question}: {row.what} {'failed: ' + row.problem if row.problem else row.note}", file=sys.stderr)
        rows.append(row)
    return about() | {"seconds": time.monotonic() - began} | answers(rows)


def answers(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the figures of all rows, as shares of the rate at which the card copies memory."""
    rows = list(rows)
    copied = next((row for row in rows if row.question == "copy" and row.seconds and row.n_bytes), None)
    rate = None if copied is None else figures(copied, None)["gb_s"]
    return {"copy_gb_s": rate, "rows": [figures(row, rate) for row in rows]}


def about() -> dict[str, Any]:
    """Return the card, its driver, and the versions of what runs on it."""
    return {"card": _card(), "cuda": _cuda(), "versions": {name: _version(name) for name in PACKAGES}}


def _card() -> dict[str, str]:
    """Return what nvidia-smi says about the first card; its name alone where there is no nvidia-smi."""
    import torch

    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(CARD)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {"name": torch.cuda.get_device_name(0)}
    return dict(zip(CARD, (value.strip() for value in done.stdout.strip().split(",")), strict=False))


def _cuda() -> str | None:
    import torch

    return torch.version.cuda


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def text(found: dict[str, Any]) -> str:
    """Return the card, the versions and the table."""
    rows: list[Figures] = found["rows"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items() if number)
    card = ", ".join(f"{key} {value}" for key, value in found["card"].items())
    return f"{card}; CUDA {found['cuda']}; {versions}; {found['seconds']:.0f} s\n\n{markdown(rows)}"


def write(found: dict[str, Any], path: str | None) -> None:
    """Print the table and, as the last line, the JSON; write the JSON to a file too."""
    line = json.dumps(found, allow_nan=False)
    if path is not None:
        Path(path).write_text(line + "\n")
    print(text(found))
    print(line)
