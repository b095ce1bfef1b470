"""Name the nodes of llama.cpp's graphs as this project's stages.

Most nodes are known by the name that their callback gives them (models/llava.cpp, models/siglip.cpp,
models/qwen2vl.cpp, models/gemma3.cpp, llama-graph.cpp of b10605; b11549 has the same). The others are known by their
operation and by the names of what they read, such as `mm.0.weight`: `UNNAMED` lists those stages. A name comes several
times in a graph (product, bias added, reshaped, turned); the last that fits is the stage. T positions of one call, N
patches, H heads, dh head size.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llava_ref.tracing.trace import Probe, join

UNNAMED = (
    "vision.pixels", "vision.patch_embd", "vision.pos_embd", "vision.blk.*.kq_soft_max", "vision.post_ln",
    "vision.features", "projector.*", "embd of pictures", "blk.*.attn_out of gemma3 and qwen2vl",
)  # fmt: skip
NUMBERED = re.compile(r"([A-Za-z_]\w*)-(\d+)", re.ASCII)
TOWER = {
    name: name
    for name in (
        "layer_inp_normed", "kqv_out", "attn_out", "ffn_inp", "ffn_inp_normed", "ffn_gate", "ffn_up", "ffn_out",
        "layer_out",
    )
} | {"ffn_up_b": "ffn_up", "ffn_gate_b": "ffn_gate", "ffn_swiglu": "ffn_act", "ln1": "layer_inp_normed"}  # fmt: skip
TOWER |= {f"ffn_{kind}": "ffn_act" for kind in ("gelu", "gelu_quick", "gelu_erf", "silu")} | {"ffn_geglu": "ffn_act"}
DECODER = {
    name: name
    for name in (
        "attn_norm", "kqv_out", "attn_out", "attn_post_norm", "ffn_inp", "ffn_norm", "ffn_gate", "ffn_up", "ffn_swiglu",
        "ffn_geglu", "ffn_out", "ffn_post_norm",
    )
} | {"ffn_gate_b": "ffn_gate", "ffn_up_b": "ffn_up", "sa_out": "ffn_inp", "l_out": "out"}  # fmt: skip
READ = {  # a stage behind the blocks by the tensor that its last node reads
    "v.post_ln.": "vision.post_ln",
    "mm.soft_emb_norm.": "projector.soft_emb_norm",
    "mm.input_norm.": "projector.input_norm",
    "mm.patch_merger.": "projector.merger",
    "mm.1.": "projector.mm_1",
    "mm.2.": "projector.out",
    "mm.3.": "projector.mm_3",
    "mm.4.": "projector.out",
    "mm.model.mlp.1.": "projector.mm_1",
    "mm.model.mlp.2.": "projector.mm_2",
    "mm.model.mlp.3.": "projector.out",
}
LDP = {  # the same for MobileVLM's
    "mm.model.mlp.1.": "mm_1",
    "mm.model.mlp.3.": "mm_3",
    **{
        f"mm.model.mb_block.{i}.block.{part}.": f"mb_{i}.{stage}"
        for i in (1, 2)
        for part, stage in (("0.1", "norm"), ("1.fc2", "excite"), ("2.0", "point"))
    },
    "mm.model.mb_block.1.block.2.1.": "mb_1.out",
    "mm.model.mb_block.2.block.2.1.": "out",
}
OUTPUT = re.compile(r"blk\.(\d+)\.attn_output\.weight")
INPUTS = ("embd", "inp_scaled")  # what the first norm reads: rows of llama, those of gemma3
NORMED = ("Qcur_normed", "Kcur_normed")
QKV = ("Qcur", "Kcur", "Vcur")
TURNED = {f"{part}_{turned}": f"{part}_rope" for part in ("Qcur", "Kcur") for turned in ("rope", "pos")}
VIEWS = ("RESHAPE", "VIEW", "PERMUTE", "CONT", "CPY")


@dataclass(frozen=True, slots=True)
class Node:
    """A tensor of the graph that has just been computed."""

    name: str
    op: str  # MUL_MAT, ADD, RESHAPE, ...
    sources: tuple[str, ...]  # the names of the tensors it was computed from
    array: Callable[[int], np.ndarray]  # its values, with at least this many axes
    source: Callable[[int, int], np.ndarray]  # the values of source number i, if nothing has been written over them


class Recorder:
    """Keep the stages that `globs` ask for (`kq_soft_max` only if a pattern names it) while a prompt runs.

    The caller says whose nodes come next: `picture` before each picture, `decoder` before the text model's, `stop`
    when the prompt has been read."""

    def __init__(self, globs: Sequence[str]) -> None:
        self.globs, self._probe = tuple(globs), Probe(globs)
        self._see: Callable[[Node], None] | None = None
        self._pictures, self._past, self._block = 0, 0, 0
        self._embedded, self._position = False, ""  # whether patches have their positions; the node that holds those
        self._pooled = False  # whether patches have been averaged, or MobileVLM's blocks have begun
        self._begun = False  # whether a projector's first matrix has come
        self._mobile = False  # whether that was MobileVLM's
        self._frames = False  # whether Qwen2-VL's second kernel has come
        self._now: dict[str, np.ndarray] = {}  # of the graph that is running
        self._pieces: dict[str, list[np.ndarray]] = {}

    def picture(self) -> None:
        self._finish()
        self._pictures += 1
        self._see, self._embedded, self._position, self._pooled = self._tower, False, "", False
        self._begun = self._mobile = self._frames = False

    def decoder(self) -> None:
        self._finish()
        self._see = self._decoder

    def stop(self) -> None:
        self._finish()
        self._see = None

    def see(self, node: Node) -> None:
        if self._see is not None:
            self._see(node)

    def add(self, name: str, array: np.ndarray) -> None:
        """Add a stage that is no node of a graph."""
        if self._probe.wants(name.partition("#")[0]):
            self._pieces[name] = [array]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the stages, pieces joined along positions."""
        self._finish()
        return {name: join(name, pieces) for name, pieces in self._pieces.items()}

    def _finish(self) -> None:
        for name, array in self._now.items():
            of_picture = name.startswith(("vision.", "projector."))
            number = f"#{self._pictures - 1}" if of_picture and self._pictures > 1 else ""
            self._pieces.setdefault(name + number, []).append(array)
        self._now = {}

    def _keep(self, name: str, read: Callable[[], np.ndarray]) -> None:
        if self._probe.wants(name):
            self._now[name] = read()

    def _rows(self, name: str, node: Node) -> None:
        self._keep(name, lambda: node.array(2))

    def _tower(self, node: Node) -> None:
        if not self._embedded:
            self._patches(node)
        elif not any(name.startswith("v.post_ln.") for name in node.sources) and (
            found := NUMBERED.fullmatch(node.name)
        ):
            self._tower_block(node, found[1], int(found[2]))
        elif node.op == "SOFT_MAX":
            self._keep(f"vision.blk.{self._block}.kq_soft_max", lambda: node.array(3))
        elif node.name == "pre_ln":
            self._rows("vision.pre_ln", node)
        else:
            self._behind_the_blocks(node)

    def _patches(self, node: Node) -> None:
        """Read the nodes up to the sum with the position table. The last one before that sum, or before the class token
        is joined, is the patches."""
        if node.op == "IM2COL":
            self._keep("vision.pixels", lambda: node.source(1, 3))
        elif node.name.startswith("v.patch_embd.weight.1"):
            self._frames = True
        elif self._frames:
            self._blocks_of_patches(node)
        elif node.op == "ADD" and {self._position, "v.position_embd.weight"} & set(node.sources):
            self._rows("vision.pos_embd", node)
            self._embedded = True
        elif "v.position_embd.weight" in node.sources:  # the rows that will be added
            self._position = node.name
        elif node.op == "RMS_NORM":  # Pixtral, which has no such table
            self._embedded = True
        elif node.op != "CONCAT" and "v.class_embd" not in node.sources:
            self._rows("vision.patch_embd", node)

    def _blocks_of_patches(self, node: Node) -> None:
        """Read Qwen's nodes up to the first norm: the last copy has 2 x 2 patches together, and in Qwen2.5-VL rows of
        four are chosen in the order of windows, then parted."""
        if node.op in ("CONT", "RESHAPE"):
            self._rows("vision.patch_embd", node)
        elif node.op in ("NORM", "RMS_NORM"):
            self._embedded = True

    def _tower_block(self, node: Node, part: str, block: int) -> None:
        self._block, name = block, f"vision.blk.{block}.{part}"
        if part in QKV:  # (T, H, dh), the only node of the name
            self._keep(name, lambda: _joined_heads(node.array(3)))
        elif part in TURNED:
            self._keep(f"vision.blk.{block}.{TURNED[part]}", lambda: node.array(3))
        elif part in TOWER:
            self._rows(f"vision.blk.{block}.{TOWER[part]}", node)

    def _behind_the_blocks(self, node: Node) -> None:
        read = " ".join(node.sources)
        self._mobile |= "mm.model.mlp.1." in read and not self._begun
        if self._mobile:
            self._mobilevlm(node, read)
        elif stage := next((stage for part, stage in READ.items() if part in read), None):
            self._rows(stage, node)
        elif "mm.0." in read or "mm.model.mlp.0." in read:
            self._begun = True
            if node.op == "MUL_MAT" and not self._frames:
                self._keep("vision.features", lambda: node.source(1, 2))
            self._rows("projector.mm_0", node)
        elif node.name.endswith("(view) (cont)"):  # InternVL, without the class token
            self._rows("vision.features", node)
        elif node.op == "NORM" and "(view)" in read:
            self._keep("projector.shuffle", lambda: node.source(0, 2))
        elif node.op == "ADD" and self._pooled:  # MobileVLM V2: the last of several
            self._keep("projector.out", lambda: _rows_of_grid(node.array(3)))
        elif self._frames and node.op == "GET_ROWS":  # Qwen2.5-VL: put back
            self._rows("projector.out", node)
        elif node.op == "UNARY":
            self._rows("projector.gelu", node)
        elif node.op == "POOL_2D":
            self._pooled = True
            self._keep("projector.pool", lambda: _rows_of_squares(node.array(3)))
        elif node.op == "IM2COL" and not self._pooled:  # of Mistral Small 3.1's squares
            self._keep("projector.shuffle", lambda: _rows_of_grid(node.array(3)))
        elif node.name == "pixel_shuffle":
            self._rows("projector.shuffle", node)
        elif ("mm.input_projection." in read or "mm.model.fc." in read) and node.op == "MUL_MAT":
            self._rows("projector.out", node)

    def _mobilevlm(self, node: Node, read: str) -> None:
        """Read the nodes of projector `ldp`, whose first matrix is `mm.model.mlp.1`."""
        if "mm.model.mlp.1." in read and node.op == "MUL_MAT":
            self._keep("vision.features", lambda: node.source(1, 2))
        if stage := next((stage for part, stage in LDP.items() if part in read), None):
            self._keep(f"projector.{stage}", lambda: _rows_of_grid(node.array(2)))
            self._pooled |= stage == "mm_3"
        elif node.op == "UNARY" and not self._pooled:
            self._rows("projector.gelu", node)
        elif node.op == "ADD" and "mm." not in read:
            self._keep("projector.mb_1.out", lambda: _rows_of_squares(node.array(3)))

    def _decoder(self, node: Node) -> None:
        if node.op == "RMS_NORM" and set(INPUTS) & set(node.sources):
            self._finish()  # a long part of the prompt runs the graph several times
            self._keep("embd", lambda: node.source(0, 2))
            self._count = len(node.source(0, 2))
            self._past += self._count
        elif found := NUMBERED.fullmatch(node.name):
            self._decoder_block(node, found[1], f"blk.{found[2]}")
        elif node.name in ("result_norm", "result_output"):
            self._rows(node.name, node)
        elif node.op == "MUL_MAT" and (found := OUTPUT.search(" ".join(node.sources))):
            self._rows(f"blk.{found[1]}.attn_out", node)

    def _decoder_block(self, node: Node, part: str, block: str) -> None:
        if part in QKV and node.op == "ROPE":
            self._keep(f"{block}.{part}_rope", lambda: node.array(3))
        elif part in QKV and node.op not in VIEWS:
            self._rows(f"{block}.{part}", node)
        elif part in NORMED:
            self._keep(f"{block}.{part}", lambda: node.array(3))
        elif part == "kq_soft_max":  # keys are padded to a multiple of 256
            self._keep(f"{block}.{part}", lambda: node.array(3)[:, :, : self._past])
        elif part in DECODER:
            self._rows(f"{block}.{DECODER[part]}", node)


def with_axes(x: np.ndarray, axes: int) -> np.ndarray:
    """Remove the first axes of 1 of an array, down to this many."""
    spare = max(x.ndim - axes, 0)
    axis = next((i for i, n in enumerate(x.shape[:spare]) if n != 1), spare)
    return x.reshape(x.shape[axis:])


def _rows_of_grid(x: np.ndarray) -> np.ndarray:  # (y, x, D) -> (y * x, D)
    return x.reshape(-1, x.shape[-1])


def _rows_of_squares(x: np.ndarray) -> np.ndarray:  # (D, y, x) -> (y * x, D)
    return np.ascontiguousarray(x.reshape(len(x), -1).T)


def _joined_heads(x: np.ndarray) -> np.ndarray:  # (T, H, dh) -> (T, H * dh)
    return x.reshape(len(x), -1)
