"""Run single operations of ggml's CPU backend as a reference: arrays in, arrays out.

They run in a separate process (`worker`), because ggml aborts on an operation that it lacks; the abort is reported, and
the other operations still run. One thread and plain kernels are used: weights are not repacked, which takes an extra
buffer type that only a model loader asks for. T rows of activations, K width in, N width out, H heads, Hkv key/value
heads, S keys, dh head size, V vocabulary.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llava_ref.gguf.types import BY_ID

from ..llama_cpp.oracle import OracleError, missing
from ..process import run_program


@dataclass(frozen=True, slots=True)
class Operation:
    """Holds one operation with its inputs, made by one of the functions below."""

    op: str
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """Says why there is no result: ggml has no such kernel, or crashed."""

    reason: str


def mul_mat(kind: str, weights: np.ndarray, x: np.ndarray) -> Operation:
    """Multiply x (T, K) float32 by weights (N, bytes) uint8, rows of type `kind`: (T, N)."""
    return Operation("mul_mat", {"weights": weights, "x": x}, {"kind": kind})


def rounded(kind: str, x: np.ndarray) -> Operation:
    """Round x (T, K) as ggml does for a dot product: (T, bytes) uint8 of type F16, BF16, Q8_0, Q8_1 or Q8_K."""
    return Operation("round", {"x": x}, {"kind": kind})


def conv_2d(kernel: np.ndarray, pixels: np.ndarray) -> Operation:
    """Convolve pixels (3, Y, X) float32 with a kernel (D, 3, P, P) float16 or float32: (D, Y / P, X / P)."""
    return Operation("conv_2d", {"kernel": kernel, "pixels": pixels})


def activation(kind: str, x: np.ndarray) -> Operation:
    """Apply gelu (the tanh formula), gelu_quick, gelu_erf or silu to every number of x."""
    return Operation("activation", {"x": x}, {"kind": kind})


def soft_max(x: np.ndarray, mask: np.ndarray, scale: float) -> Operation:
    """Compute softmax(x * scale + mask) of x (H, T, S) and mask (T, S): (H, T, S)."""
    return Operation("soft_max", {"x": x, "mask": mask.astype(np.float16)}, {"scale": scale})


def flash_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, mask: np.ndarray | None) -> Operation:
    """Attend with q (T, H, dh), k and v (S, Hkv, dh) of float16 or float32, and mask (T, S): (T, H, dh)."""
    arrays = {name: x.transpose(1, 0, 2) for name, x in (("q", q), ("k", k), ("v", v))}
    return Operation(
        "flash_attention", arrays if mask is None else arrays | {"mask": mask.astype(np.float16)}, {"scale": scale}
    )


def run(operations: Sequence[Operation], *, timeout: float = 120.0) -> list[np.ndarray | Failure]:
    """Run operations; return the result of each, float32 or bytes, or its failure.

    Raises OracleError if llama.cpp is not installed or takes too long."""
    if (reason := missing()) is not None:
        raise OracleError("ggml", "package", reason)
    with tempfile.TemporaryDirectory(prefix="llava-ref-ggml-") as name:
        folder = Path(name)
        for i, operation in enumerate(operations):
            (folder / f"{i}.json").write_text(json.dumps({"op": operation.op, **operation.numbers}))
            np.savez(folder / f"{i}.npz", **operation.arrays)  # type: ignore[arg-type]
        results: list[np.ndarray | Failure] = []
        while len(results) < len(operations):
            crash = _start(folder, len(results), timeout)
            results += _results(folder, len(results), len(operations))
            if len(results) < len(operations):
                results.append(Failure(crash))
        return results


def arrays(operations: Sequence[Operation]) -> list[np.ndarray]:
    """Run operations that must all have a result. Raises OracleError naming the first that has none."""
    results = []
    for operation, result in zip(operations, run(operations), strict=True):
        if isinstance(result, Failure):
            raise OracleError("ggml", operation.op, result.reason)
        results.append(result)
    return results


def kernels() -> dict[str, str]:
    """Map every weight type that ggml's CPU backend can multiply by to the type that it rounds activations to."""
    names = {id_: block.name for id_, block in BY_ID.items()} | {9: "Q8_1", 15: "Q8_K"}
    (table,) = arrays([Operation("kernels")])
    return {names[kind]: names[activations] for kind, activations in table.tolist()}


def _start(folder: Path, first: int, timeout: float) -> str:
    """Run the operations from `first` on until the end or a crash; describe the crash."""
    command = [sys.executable, "-m", "llava_ref.conformance.engines.ggml.worker", str(folder), str(first)]
    ended = run_program(command, timeout, partial(OracleError, "ggml"))
    if ended.code > 0:  # no operation causes this; none would have a result
        raise OracleError("ggml", "process", ended.how)
    return ended.how


def _results(folder: Path, first: int, end: int) -> list[np.ndarray | Failure]:
    """Read the results from `first` on, up to the first operation without one."""
    results: list[np.ndarray | Failure] = []
    for i in range(first, end):
        if (folder / f"{i}.failed").exists():
            results.append(Failure((folder / f"{i}.failed").read_text()))
        elif (folder / f"{i}.result.npy").exists():
            results.append(np.load(folder / f"{i}.result.npy"))
        else:
            break
    return results
