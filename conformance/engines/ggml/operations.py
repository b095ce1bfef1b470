"""Single operations of ggml's CPU backend as a reference: arrays in, arrays out. They run in a process of their own
(`ggml_worker`), because ggml answers what it cannot do with an abort; that is told, and the rest still runs.

One thread, plain kernels: weights are not repacked, which takes an extra buffer type that only a model loader asks for.
T rows of activations, K width in, N width out, H heads, Hkv key/value heads, S keys, dh head size.
"""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llava_ref.gguf.types import BY_ID

from ..llama_cpp.oracle import OracleError, missing


@dataclass(frozen=True, slots=True)
class Job:
    """One operation, made by one of the functions below."""

    op: str
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no answer: ggml has no such kernel, or crashed."""

    reason: str


def mul_mat(kind: str, weights: np.ndarray, x: np.ndarray) -> Job:
    """`weights`: rows of bytes (N, bytes) uint8 of type `kind`; x (T, K) float32 -> (T, N)"""
    return Job("mul_mat", {"weights": weights, "x": x}, {"kind": kind})


def rounded(kind: str, x: np.ndarray) -> Job:
    """x (T, K) as ggml hands it to a dot product: the bytes of type F16, BF16, Q8_0, Q8_1 or Q8_K, (T, bytes) uint8"""
    return Job("round", {"x": x}, {"kind": kind})


def conv_2d(kernel: np.ndarray, pixels: np.ndarray) -> Job:
    """kernel (D, 3, P, P) float16 or float32, pixels (3, Y, X) float32 -> (D, Y / P, X / P)"""
    return Job("conv_2d", {"kernel": kernel, "pixels": pixels})


def activation(kind: str, x: np.ndarray) -> Job:
    """`kind`: gelu (the tanh formula), gelu_quick, gelu_erf or silu, of every number of x"""
    return Job("activation", {"x": x}, {"kind": kind})


def soft_max(x: np.ndarray, mask: np.ndarray, scale: float) -> Job:
    """softmax(x * scale + mask): (H, T, S), (T, S) -> (H, T, S)"""
    return Job("soft_max", {"x": x, "mask": mask.astype(np.float16)}, {"scale": scale})


def flash_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, mask: np.ndarray | None) -> Job:
    """(T, H, dh) (S, Hkv, dh) (S, Hkv, dh) (T, S) -> (T, H, dh). k and v keep their dtype, float16 or float32."""
    arrays = {name: x.transpose(1, 0, 2) for name, x in (("q", q), ("k", k), ("v", v))}
    return Job(
        "flash_attention", arrays if mask is None else arrays | {"mask": mask.astype(np.float16)}, {"scale": scale}
    )


def run(jobs: Sequence[Job], *, timeout: float = 120.0) -> list[np.ndarray | Failure]:
    """The answer to each job: float32, or bytes. OracleError where llama.cpp is not installed or takes too long."""
    if (reason := missing()) is not None:
        raise OracleError("ggml", "package", reason)
    with tempfile.TemporaryDirectory(prefix="llava-ref-ggml-") as name:
        folder = Path(name)
        for i, job in enumerate(jobs):
            (folder / f"{i}.json").write_text(json.dumps({"op": job.op, **job.numbers}))
            np.savez(folder / f"{i}.npz", **job.arrays)  # type: ignore[arg-type]
        answers: list[np.ndarray | Failure] = []
        while len(answers) < len(jobs):
            crash = _start(folder, len(answers), timeout)
            answers += _answers(folder, len(answers), len(jobs))
            if len(answers) < len(jobs):
                answers.append(Failure(crash))
        return answers


def arrays(jobs: Sequence[Job]) -> list[np.ndarray]:
    """As `run`, where every job must have an answer; OracleError tells the first that has none."""
    found = []
    for job, answer in zip(jobs, run(jobs), strict=True):
        if isinstance(answer, Failure):
            raise OracleError("ggml", job.op, answer.reason)
        found.append(answer)
    return found


def kernels() -> dict[str, str]:
    """Every weight type that ggml's CPU backend can multiply by, and the type it rounds activations to for it."""
    names = {id_: block.name for id_, block in BY_ID.items()} | {9: "Q8_1", 15: "Q8_K"}
    (table,) = arrays([Job("kernels")])
    return {names[kind]: names[activations] for kind, activations in table.tolist()}


def _start(folder: Path, first: int, timeout: float) -> str:
    """Runs jobs from `first` until the end or a crash -> what the crash was."""
    command = [sys.executable, "-m", "llava_ref.conformance.engines.ggml.worker", str(folder), str(first)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise OracleError("ggml", "time", f"no answer after {timeout:g} s") from error
    words = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
    if done.returncode < 0:
        return f"ended by {signal.Signals(-done.returncode).name}: {words}"
    if done.returncode:  # not a job's fault: none would be answered
        raise OracleError("ggml", "process", words or f"ended with status {done.returncode}")
    return words


def _answers(folder: Path, first: int, end: int) -> list[np.ndarray | Failure]:
    """What is there from `first` on, up to the first job without an answer."""
    found: list[np.ndarray | Failure] = []
    for i in range(first, end):
        if (folder / f"{i}.failed").exists():
            found.append(Failure((folder / f"{i}.failed").read_text()))
        elif (folder / f"{i}.result.npy").exists():
            found.append(np.load(folder / f"{i}.result.npy"))
        else:
            break
    return found
