"""Apply an activation, and multiply by the second half of a gated MLP.

`activate` is what the epilogues of other kernels call: one exponential and one division a value, or an error function.
`gate` is one pass over the product of both halves for any number of rows: it reads 8 bytes and writes 4 a value of
float32, in loads of 16 bytes, so its time is 12 M F bytes over the memory's rate.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from llava_ref.ops.protocol import Activation

from .variant import Variant

BLOCK = 1024
KINDS = ("silu", "gelu_tanh", "gelu_quick", "gelu_erf")
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x)); the exponent is never positive, so nothing overflows."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1.0 + small)


@triton.jit
def activate(x, KIND: tl.constexpr):
    """Apply the activation KIND of kernels/reference.py to x float32.  0.5 (1 + tanh u) is sigmoid(2 u)."""
    if KIND == "silu":
        return x * sigmoid(x)
    elif KIND == "gelu_quick":
        return x * sigmoid(1.702 * x)
    elif KIND == "gelu_tanh":
        return x * sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))  # 2 sqrt(2 / pi)
    else:
        tl.static_assert(KIND == "gelu_erf")
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _row(x, row, stride, column, F: tl.constexpr, BLOCK: tl.constexpr):
    """Load BLOCK values of a row as float32, zeros behind F."""
    if F % BLOCK == 0:
        return tl.load(x + row * stride + column).to(tl.float32)
    else:
        return tl.load(x + row * stride + column, column < F, other=0.0).to(tl.float32)


@triton.jit
def _gate(
    gate, up, out, gate_row: tl.constexpr, up_row: tl.constexpr, F: tl.constexpr, KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK values of a row."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y = activate(_row(gate, row, gate_row, column, F, BLOCK), KIND)
    if up is not None:
        y *= _row(up, row, up_row, column, F, BLOCK)
    if F % BLOCK == 0:
        tl.store(out + row * F + column, y)
    else:
        tl.store(out + row * F + column, y, column < F)


def gate(gate: Tensor, up: Tensor | None, kind: Activation, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return activation(gate) * up, or the activation alone, computed in float32.  (M, F) (M, F) -> (M, F)

    Rows may lie apart: both halves are columns of one product. Raises ValueError."""
    for name, x in (("gate", gate), ("up", gate if up is None else up)):
        if x.dtype not in TYPES or x.ndim != 2 or x.shape != gate.shape or (x.shape[1] > 1 and x.stride(1) != 1):
            raise ValueError(f"{name}: {x.dtype} {tuple(x.shape)} {x.stride()}, expected (M, F) without gaps in a row")
    if kind not in KINDS or dtype not in TYPES:
        raise ValueError(f"kind: {kind} in {dtype}, expected one of {', '.join(KINDS)} in {', '.join(TYPES.values())}")
    M, F = gate.shape
    out = torch.empty(M, F, dtype=dtype, device=gate.device)
    strides = {"gate_row": gate.stride(0), "up_row": 0 if up is None else up.stride(0)}
    grid = (M, triton.cdiv(F, BLOCK))
    _gate[grid](gate, up, out, **strides, F=F, KIND=kind, BLOCK=BLOCK, num_warps=4)
    return out


def variants() -> Iterator[Variant]:
    """List LLaVA-1.5-7B's widths and the types that prefill uses, Gemma 3's activation, and a tower's alone."""
    for kind, F, kinds in (("silu", 11008, ("fp32", "fp32")), ("gelu_tanh", 10240, ("fp32", "bf16"))):
        types = {"gate": f"*{kinds[0]}", "up": f"*{kinds[0]}", "out": f"*{kinds[1]}"}
        constants = {"gate_row": 2 * F, "up_row": 2 * F, "F": F, "KIND": kind, "BLOCK": BLOCK}
        yield Variant(f"gate {kind} {F} {kinds[1]}", _gate, types, constants)
    constants = {"up": None, "gate_row": 4096, "up_row": 0, "F": 4096, "KIND": "gelu_quick", "BLOCK": BLOCK}
    yield Variant("activation gelu_quick 4096", _gate, {"gate": "*fp32", "out": "*fp32"}, constants)
