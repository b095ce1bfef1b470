"""Say what machine, and which versions, figures come from."""

import platform
import re
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from llava_ref.benchmark.bandwidth import cache_bytes
from llava_ref.ops.threads import processors

PACKAGES = ("llava-ref", "torch", "numpy", "llvmlite")
SETS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "i8mm")
"""Instruction sets that matter to kernels, as /proc/cpuinfo calls them."""


def facts() -> dict[str, Any]:
    """Return the date, the processor and its instruction sets, memory, and versions."""
    cpu, memory = _read("/proc/cpuinfo"), _read("/proc/meminfo")
    flags = _field(cpu, "flags|Features").split()
    return {
        "date": date.today().isoformat(),
        "processor": _field(cpu, "model name") or platform.processor() or platform.machine(),
        "processors": processors(),
        "sets": [name for name in SETS if name in flags],
        "last_cache_mb": cache_bytes() / 1e6,
        "memory_gb": int(_field(memory, "MemTotal").split()[0] or 0) * 1024 / 1e9 if memory else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _field(text: str, name: str) -> str:
    found = re.search(rf"^(?:{name})\s*: *(.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
