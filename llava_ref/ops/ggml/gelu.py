"""Compute GELU as ggml does on the CPU: by a table with an entry for every float16, made once in float32.

Source: llama.cpp b10605, ggml/src/ggml-cpu/vec.h:987-1036 (look-up), ggml-cpu.c, ggml_cpu_init (the tables).
"""

from functools import cache

import numpy as np

BOUND = np.float32(10)  # outside -10..10 tanh-GELU does without the table: 0, or x itself


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """Look up GELU by tanh.  float32 -> float32, any shape"""
    return np.where(x <= -BOUND, np.float32(0), np.where(x >= BOUND, x, _look_up(x, tanh_table())))


def gelu_quick(x: np.ndarray) -> np.ndarray:
    """Look up quick GELU.  float32 -> float32, any shape"""
    return _look_up(x, quick_table())


def _look_up(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return table[x.astype(np.float16).view(np.uint16)].astype(np.float32)


@cache
def tanh_table() -> np.ndarray:
    """Return (65536,) float16: entry i is 0.5 x (1 + tanh(sqrt(2 / pi) x (1 + 0.044715 x^2))), x the float16
    of bits i"""
    with np.errstate(all="ignore"):
        x, one = _every_half(), np.float32(1)
        inner = np.float32(0.79788456080286535587989211986876) * x * (one + np.float32(0.044715) * x * x)
        tanh = np.tanh(inner.astype(np.float64)).astype(np.float32)
        return (np.float32(0.5) * x * (one + tanh)).astype(np.float16)


@cache
def quick_table() -> np.ndarray:
    """Return (65536,) float16: entry i is x / (1 + exp(-1.702 x)), x the float16 of bits i"""
    with np.errstate(all="ignore"):
        x, one = _every_half(), np.float32(1)
        exp = np.exp((np.float32(-1.702) * x).astype(np.float64)).astype(np.float32)
        return (x * (one / (one + exp))).astype(np.float16)


def _every_half() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
