"""Know the processor: the level of instructions that kernels are written for, and LLVM's target for it.

`LEVEL` is chosen once. `amx` and `avx512` have vectors of 64 bytes, and `amx` tiles beside them (amx.py); `avx2` has
half as much; `portable` is what LLVM makes of plain vector code on any processor. LLAVA_REF_SIMD asks for another one.
Of a lower level, the processor's other features are unused. A higher one has its shapes and loops, in plain code: so
a machine can test what is written for another.
"""

import ctypes
import os
import platform
import sys
from functools import cache
from typing import Any

from llvmlite import binding

_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq")
LEVELS = {
    "amx": (*_AVX512, "avx512vnni", "avx512bf16", "amx-tile", "amx-bf16"),
    "avx512": _AVX512,
    "avx2": ("avx2", "fma", "f16c"),
    "portable": (),
}
"""What LLVM calls the features that a level needs, from the highest level to the lowest."""
BASELINE = {"avx512": "skylake-avx512", "avx2": "haswell", "portable": "x86-64"}
"""LLVM's names of processors that have a level and little more."""
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


def _tiles_granted() -> bool:
    """Ask Linux for the tile registers: https://docs.kernel.org/arch/x86/xstate.html"""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0


def _best(host: dict[str, bool]) -> str:
    """Name the highest level that the processor has."""
    found = [level for level, needs in LEVELS.items() if all(host.get(feature) for feature in needs)]
    return found[1] if found[0] == "amx" and not _tiles_granted() else found[0]


def _order(level: str) -> int:
    return list(LEVELS).index(level)


HOST = dict(binding.get_host_cpu_features())
BEST = _best(HOST)
LEVEL = os.environ.get("LLAVA_REF_SIMD") or BEST
if LEVEL not in LEVELS:
    raise ValueError(f"LLAVA_REF_SIMD: {LEVEL!r}, expected one of {', '.join(LEVELS)}")
TILES = LEVEL == "amx"
SET = "avx512" if TILES else LEVEL
"""Whose shapes kernels have: avx512, avx2 or portable."""
OWN, LOWERED = LEVEL == BEST, _order(LEVEL) > _order(BEST)
INSTRUCTIONS = SET if _order(LEVEL) >= _order(BEST) else BEST
"""Whose instructions may be named: those of the level, or of the processor where that has less."""
VNNI = OWN and bool(HOST.get({"avx512": "avx512vnni", "avx2": "avxvnni"}.get(SET, "")))
BF16 = OWN and SET == "avx512" and bool(HOST.get("avx512bf16"))
GALOIS = OWN and SET == "avx512" and bool(HOST.get("gfni"))


def named() -> tuple[str, str]:
    """Return the processor and the features that code is made for, in LLVM's words."""
    if LOWERED and platform.machine() in ("x86_64", "AMD64"):  # LLVM itself must not know more than the level
        return BASELINE[LEVEL], ""
    features = binding.get_host_cpu_features().flatten()
    if (
        VNNI and SET == "avx512"
    ):  # LLVM would take some processors' multiply-add apart, for a chain that does not matter
        features += ",+fast-dpwssd"
    return binding.get_host_cpu_name(), features


@cache
def _prepared() -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.Target.from_default_triple()


def target() -> Any:
    """Return LLVM's target machine, a new one."""
    cpu, features = named()
    return _prepared().create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="pic", codemodel="jitdefault", jit=True
    )
