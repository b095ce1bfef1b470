"""Random models of given sizes on a device, without a file: a decoder and a tower, as a GGUF file would give them.

D width, H heads, dh head size, F MLP width, V vocabulary, P patch.
"""

from collections.abc import Callable
from typing import cast

import numpy as np

from ...conformance.pairs.random_blocks import random_tensor
from ...gguf.file import GGUFFile, TensorView
from ...models import anyres, rope
from ...models.clip import Clip, ClipPlan, ClipWeights
from ...models.config import TextConfig, VisionConfig
from ...models.llama import Llama, LlamaBlock, LlamaWeights
from ...models.projectors import MlpWeights
from ...models.vit import VitBlock
from ...ops.arrays import Array, Linear, Norm
from ...ops.protocol import Ops
from .sizes import Sizes

NO_FILE = cast(GGUFFile, None)  # these models have none; only an error that names a tensor would ask for it
REPEATED = 64  # rows of a matrix that are drawn at random; the others are copies of these
Kinds = Callable[[str, int, int], str]
"""(matrix, layer, layers) -> its weight type."""


def q4_k_m(name: str, layer: int, n_layer: int) -> str:
    """Return what llama.cpp's Q4_K_M gives a matrix of a llama model (llama-quant.cpp, b10605).

    Q6_K for the output, and for half of the values and of the last MLP matrices: the first and the last eighth of the
    layers, and every third between them."""
    eighth = n_layer // 8
    more = layer < eighth or layer >= 7 * n_layer // 8 or (layer - eighth) % 3 == 2
    return "Q6_K" if name == "output" or (name in ("v", "down") and more) else "Q4_K"


MIXES: dict[str, Kinds] = {
    "Q4_K_M": q4_k_m,
    "Q8_0": lambda name, layer, n_layer: "Q8_0",
    "F16": lambda name, layer, n_layer: "F16",
}


class Maker:
    """Makes matrices and vectors. Those of one type and shape have the same host memory, and their own on a device."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self._data = dict[tuple[str, int, int], memoryview]()

    def matrix(self, kind: str, N: int, K: int, shape: tuple[int, ...] = ()) -> Linear:
        if (kind, N, K) not in self._data:
            rows = random_tensor(kind, min(N, REPEATED), K, 1)
            whole = np.tile(rows, (-(-N // REPEATED), 1))[:N]
            self._data[kind, N, K] = memoryview(bytearray(whole.tobytes()))
        return Linear(self.ops.matrix(TensorView("random", kind, shape or (N, K), self._data[kind, N, K])))

    def ones(self, n: int) -> Array:
        return self.ops.array(np.ones(n, np.float32))

    def affine(self, N: int, K: int) -> Linear:
        """Return a matrix of float16 with a bias."""
        return Linear(self.matrix("F16", N, K).weight, self.ops.array(np.zeros(N, np.float32)))

    def norm(self, n: int) -> Norm:
        return Norm(self.ones(n), self.ops.array(np.zeros(n, np.float32)))


def decoder(s: Sizes, kinds: Kinds, ops: Ops) -> Llama:
    """Return a llama decoder."""
    make, n = Maker(ops), s.layers
    embd = make.matrix(kinds("embd", 0, n), s.vocabulary, s.width).weight
    turning = rope.RopeConfig(s.head_size, 10000.0, "none", 1.0, 4096, 1.0, None, 32.0, 1.0)
    weights = LlamaWeights(
        embd,
        tuple(_block(make, s, kinds, i) for i in range(n)),
        make.ones(s.width),
        make.matrix(kinds("output", 0, n), s.vocabulary, s.width),
        rope.frequencies(turning, None),
    )
    config = TextConfig(
        "llama", "random", s.width, n, s.heads, s.heads, s.head_size, s.mlp, s.vocabulary, 4096, 1e-5,
        s.head_size**-0.5, None, turning,
    )  # fmt: skip
    return Llama(NO_FILE, config, weights, ops)


def _block(make: Maker, s: Sizes, kinds: Kinds, layer: int) -> LlamaBlock:
    D, F, Q = s.width, s.mlp, s.heads * s.head_size

    def matrix(name: str, rows: int, columns: int) -> Linear:
        return make.matrix(kinds(name, layer, s.layers), rows, columns)

    q, k, v = (matrix(name, Q, D) for name in "qkv")
    mlp = matrix("gate", F, D), matrix("up", F, D), matrix("down", D, F)
    return LlamaBlock(make.ones(D), q, k, v, matrix("out", D, Q), make.ones(D), *mlp)


def tower(s: Sizes, ops: Ops) -> Clip:
    """Return a CLIP tower of float16 with LLaVA's projector."""
    make, D, P, F = Maker(ops), s.vision_width, s.patch, s.vision_mlp
    weights = ClipWeights(
        make.matrix("F16", D, 3 * P * P, (D, 3, P, P)),
        ops.array(np.zeros((1, D), np.float32)),
        ops.array(np.zeros(((s.image // P) ** 2 + 1, D), np.float32)),
        make.norm(D),
        tuple(_vit_block(make, D, F) for _ in range(s.vision_layers)),
        None,
        MlpWeights(make.affine(s.width, D), make.affine(s.width, s.width)),
        None,
    )
    config = VisionConfig(
        "mlp", s.image, P, D, s.vision_heads, F, s.vision_layers, None, 1e-5, "gelu_quick", (0.5,) * 3, (0.5,) * 3
    )  # fmt: skip
    plan = ClipPlan(s.vision_layers, True, False, "gelu_quick", "gelu_erf")
    return Clip(NO_FILE, config, plan, "pad-resize", anyres.untiled(config), weights, ops)


def _vit_block(make: Maker, D: int, F: int) -> VitBlock:
    q, k, v, out = (make.affine(D, D) for _ in range(4))
    return VitBlock(make.norm(D), q, k, v, out, make.norm(D), make.affine(F, D), make.affine(D, F))
