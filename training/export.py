"""Write a checkpoint as the embedded pair: the decoder in Q8_0 with its vocabulary, tower and projector in F16.

python -m training.export CHECKPOINT.pt VOCABULARY.gguf FOLDER
"""

import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llava_ref.chat.templates import KEY, VICUNA

from .data import IMAGE, MEAN, PATCH, STD
from .model import ShapesConfig, ShapesModel

TEXT, MMPROJ = "shapes-text.q8_0.gguf", "shapes-mmproj.f16.gguf"
VISION_BLOCK = {  # our name: GGUF's
    "ln1": "ln1", "ln2": "ln2", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_out",
    "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip
TEXT_BLOCK = {
    "norm1": "attn_norm", "norm2": "ffn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip


def vision_tensors(state: dict[str, Tensor], c: ShapesConfig) -> dict[str, Tensor]:
    """Map GGUF names to the tensors of tower and projector. The last block and the heads are not exported."""
    out = {
        "v.patch_embd.weight": state["tower.patch.weight"].reshape(c.v_width, 3, PATCH, PATCH),
        "v.class_embd": state["tower.cls"],
        "v.position_embd.weight": state["tower.position"],
        "v.pre_ln.weight": state["tower.pre_ln.weight"],
        "v.pre_ln.bias": state["tower.pre_ln.bias"],
    }
    for i in range(c.v_blocks - 1):
        for ours, theirs in VISION_BLOCK.items():
            for kind in ("weight", "bias"):
                out[f"v.blk.{i}.{theirs}.{kind}"] = state[f"tower.blocks.{i}.{ours}.{kind}"]
    for ours, theirs in (("mm0", "mm.0"), ("mm2", "mm.2")):
        for kind in ("weight", "bias"):
            out[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]
    return out


def text_tensors(state: dict[str, Tensor], c: ShapesConfig) -> dict[str, Tensor]:
    """Map GGUF names to the tensors of the decoder."""
    out = {
        "token_embd.weight": state["decoder.embed.weight"],
        "output_norm.weight": state["decoder.norm.weight"],
        "output.weight": state["decoder.output.weight"],
    }
    for i in range(c.blocks):
        for ours, theirs in TEXT_BLOCK.items():
            out[f"blk.{i}.{theirs}.weight"] = state[f"decoder.blocks.{i}.{ours}.weight"]
    return out


def load_pair(model: ShapesModel, folder: Path) -> None:
    """Load the weights of a pair of files into a model. Weights that the files lack stay as they are."""
    state = model.state_dict()
    tensors = vision_tensors(state, model.c) | text_tensors(state, model.c)  # views of the model's memory
    for file in (TEXT, MMPROJ):
        for t in gguf.GGUFReader(folder / file).tensors:
            weights = torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type))
            tensors[t.name].copy_(weights.reshape(tensors[t.name].shape))


def q8_0(x: Tensor) -> NDArray[np.uint8]:
    """Quantise a matrix to Q8_0: rows of blocks of 32, as GGUF stores them."""
    return gguf.quants.quantize(x.float().numpy(), gguf.GGMLQuantizationType.Q8_0)


def write_vision(path: Path, state: dict[str, Tensor], c: ShapesConfig) -> None:
    """Write the mmproj file."""
    w = gguf.GGUFWriter(path, "clip")
    w.add_string("general.type", "mmproj")
    w.add_name("Shapes vision tower")
    w.add_license("MIT")
    w.add_description("CLIP-shaped vision tower and projector, trained on drawn pictures of shapes, digits and words")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    w.add_bool("clip.has_vision_encoder", True)
    w.add_bool("clip.has_text_encoder", False)
    w.add_bool("clip.has_llava_projector", True)
    w.add_string("clip.projector_type", "mlp")
    w.add_bool("clip.use_gelu", False)
    stored = c.v_blocks - 1
    for key, value in {
        "image_size": IMAGE, "patch_size": PATCH, "embedding_length": c.v_width, "feed_forward_length": c.v_mlp,
        "block_count": stored, "projection_dim": c.width, "attention.head_count": c.v_heads,
    }.items():  # fmt: skip
        w.add_uint32(f"clip.vision.{key}", value)
    w.add_float32("clip.vision.attention.layer_norm_epsilon", c.ln_eps)
    w.add_array("clip.vision.image_mean", list(MEAN))
    w.add_array("clip.vision.image_std", list(STD))
    w.add_array("clip.vision.feature_layer", [stored])  # hidden state k is the output of block k - 1
    for name, tensor in vision_tensors(state, c).items():
        half = tensor.ndim > 1 and name != "v.position_embd.weight"
        w.add_tensor(name, tensor.float().numpy().astype(np.float16 if half else np.float32))
    _close(w)


def write_text(path: Path, state: dict[str, Tensor], c: ShapesConfig, vocabulary: str) -> None:
    """Write the text model's file."""
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("Shapes")
    w.add_license("MIT")
    w.add_description("Answers questions about drawn pictures of shapes, digits and words")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_context_length(c.context)
    w.add_embedding_length(c.width)
    w.add_block_count(c.blocks)
    w.add_feed_forward_length(c.mlp)
    w.add_head_count(c.heads)
    w.add_head_count_kv(c.kv_heads)
    w.add_layer_norm_rms_eps(c.rms_eps)
    w.add_rope_dimension_count(c.width // c.heads)
    w.add_rope_freq_base(c.rope_base)
    w.add_vocab_size(c.vocabulary)
    copy_vocabulary(w, vocabulary)
    w.add_chat_template(VICUNA)
    for name, tensor in text_tensors(state, c).items():
        if tensor.ndim == 1:
            w.add_tensor(name, tensor.float().numpy())
        else:
            w.add_tensor(name, q8_0(tensor), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    _close(w)


def copy_vocabulary(w: gguf.GGUFWriter, path: str) -> None:
    """Copy every `tokenizer.` key of a GGUF file except the chat template."""
    for field in gguf.GGUFReader(path).fields.values():
        if field.name.startswith("tokenizer.") and field.name != KEY:
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            w.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)


def _close(w: gguf.GGUFWriter) -> None:
    """Write the file and close it."""
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main() -> None:
    """Write both files."""
    checkpoint, vocabulary, folder = sys.argv[1:]
    state = torch.load(checkpoint)["model"]
    write_vision(Path(folder) / MMPROJ, state, ShapesConfig())
    write_text(Path(folder) / TEXT, state, ShapesConfig(), vocabulary)


if __name__ == "__main__":
    main()
