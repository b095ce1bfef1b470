"""What is true of products with a few rows beyond their error, which test_types.py measures for every type."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from llava_ref.gguf.types import TYPES
from llava_ref.kernels.cpu import blocks
from llava_ref.kernels.cpu.activations import RoundedRows, quantise
from llava_ref.kernels.cpu.launch import run
from llava_ref.kernels.cpu.matvec import DENSE, FEW, SUPPORTED, matvec
from llava_ref.kernels.cpu.processor import LEVEL, LEVELS

VECTORS = str(Path(__file__).with_name("test_simd.py"))


def worst(kind: str, K: int) -> np.ndarray:
    """One row of the largest codes and scales, all of one sign, as blocks; d is 2^-10, and there is no minimum."""
    b = np.full((K // TYPES[kind].weights, TYPES[kind].bytes), 255, np.uint8)
    d = np.array([2.0**-10, 0], np.float16).view(np.uint8)
    match kind:
        case "Q4_K" | "Q5_K":
            b[:, :4] = d
        case "Q2_K":
            b[:, 80:], b[:, :16] = d, 0x0F
        case "Q3_K":  # the lowest codes, -4, times the lowest scales, -32
            b[:], b[:, 108:] = 0, d[:2]
        case "Q6_K":  # code 63 times scale -128
            b[:, 192:208], b[:, 208:] = 128, d[:2]
        case "IQ4_XS":  # the lowest scales, -32
            b[:], b[:, :2] = 0, d[:2]
        case "Q8_0":
            b[:, 2:], b[:, :2] = 128, d[:2]
    return b


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q2_K", "Q3_K", "Q6_K", "IQ4_XS", "Q8_0"])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_largest_codes_do_not_overflow(kind, rows):
    torch_quants = pytest.importorskip("llava_ref.ops.torch_quants")
    torch, K = torch_quants.torch, 512
    b = worst(kind, K)
    w = torch_quants.decode(torch.from_numpy(b.reshape(1, -1)), kind).numpy().astype(np.float64)
    assert abs(w).min() > 0
    x, out, a = np.ones((rows, K), np.float32), np.zeros((rows, 1), np.float32), RoundedRows.of(rows, K)
    run(quantise(x.ctypes.data, K, a, rows), threads=1)
    run(matvec(kind, b.ctypes.data, 1, K, a, rows, out.ctypes.data), threads=1)
    assert np.allclose(out, w.sum(), rtol=1e-6)


def test_more_rows_than_fit_are_refused():
    x = np.zeros((FEW + 1, 32), np.float32)
    with pytest.raises(ValueError, match="rows"):
        matvec("F32", x.ctypes.data, 1, 32, x.ctypes.data, FEW + 1, x.ctypes.data)


def test_a_type_is_a_module_and_all_are_listed():
    named = {path.stem for path in Path(blocks.__file__).parent.glob("*.py")}
    assert {kind.lower() for kind in SUPPORTED} <= named and DENSE < SUPPORTED


@pytest.mark.skipif("LLAVA_REF_SIMD" in os.environ, reason="one level is chosen for this process")
@pytest.mark.parametrize("name", [name for name in LEVELS if name != LEVEL])
def test_every_other_level(name):
    """Run the tests of vectors and of overflow again: a level is chosen once a process. All kernels: test_cases.py."""
    chosen = "test_simd or overflow and (Q4_K or Q6_K)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, __file__, VECTORS]
    done = subprocess.run(command, env=os.environ | {"LLAVA_REF_SIMD": name}, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]
