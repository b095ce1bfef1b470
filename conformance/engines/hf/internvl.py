"""Load a pair of projector `internvl` into transformers' InternVLForConditionalGeneration.

T positions of the tower, D its width, F its MLP's, M the projector's middle, s patches along a side of one row's
square.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from llava_ref.gguf.file import GGUFFile

from ..reference import ReferenceError
from . import llava, qwen2vl
from .model import HfModel, refuse, transformers
from .settings import LARGE, TextSettings, VisionSettings, read_text, read_tower
from .tensors import TensorReader, tower_block

IMAGE, PREFIX = "<IMG_CONTEXT>", "model.language_model."
LEAST, MOST = "clip.vision.preproc_min_tiles", "clip.vision.preproc_max_tiles"
THEIRS = {  # names of a block of CLIP -> of InternViT
    "self_attn.out_proj": "attention.projection_layer",
    "self_attn": "attention",
    "layer_norm1": "layernorm_before",
    "layer_norm2": "layernorm_after",
}
State = dict[str, Tensor]


def load_internvl(text: GGUFFile, mmproj: GGUFFile) -> HfModel:
    """Load a pair. Raises ReferenceError for what transformers cannot express."""
    vision = replace(read_tower(mmproj), tiles=(mmproj.integer(LEAST, 1, LARGE, 1), mmproj.integer(MOST, 1, LARGE, 12)))
    tokens = text.array("tokenizer.ggml.tokens", "string")
    if IMAGE not in tokens:
        raise ReferenceError(text.path, "tokenizer.ggml.tokens", f"has no {IMAGE}, the processor's image token")
    decoder, state, settings, divisors = _decoder(text)
    config = _joined(decoder, vision, tokens.index(IMAGE), mmproj)
    vision_state = _vision_state(mmproj, config)
    with torch.device("meta"):  # random weights would take time and memory
        module = transformers().InternVLForConditionalGeneration(config)
        projector = module.model.multi_modal_projector
        for part in ("linear_1", "linear_2"):  # a config has no word for the width between the two
            rows, columns = vision_state[f"model.multi_modal_projector.{part}.weight"].shape
            setattr(projector, part, nn.Linear(columns, rows))
    module.load_state_dict(state | vision_state, assign=True)
    model = HfModel(module.eval(), "internvl", text, len(tokens), tokens.index(IMAGE), vision)
    llava.fill_decoder(model, settings, divisors)
    return model


def _decoder(file: GGUFFile) -> tuple[Any, State, TextSettings, Tensor | None]:
    """Return a decoder's config and weights, the settings that no config can say, and rope's divisors."""
    match file.string("general.architecture"):
        case "qwen2":
            c = qwen2vl.text_config(file, "qwen2.")
            settings = TextSettings(c, 0, 0.0, 1.0, c["vocab_size"])
            return transformers().Qwen2Config(**c), qwen2vl.text_state(file, c, PREFIX), settings, None
        case "llama":
            settings = read_text(file)
            config, state, divisors = llava.text_state(file, settings, extra=False)
            named = {name.replace("language_model.", PREFIX): tensor for name, tensor in state.items()}
            return config, named, settings, divisors
        case other:
            raise refuse(file, "general.architecture", repr(other))


def _biased(file: GGUFFile) -> bool:
    return any(name.endswith(("attn_q.bias", "attn_k.bias", "attn_v.bias")) for name in file.tensors)


def _joined(text: Any, vision: VisionSettings, image: int, file: GGUFFile) -> Any:
    hf, c, large = transformers(), vision.config, "v.blk.0.attn_q_norm.weight" in file.tensors
    act = "gelu" if c["hidden_act"] == "gelu_pytorch_tanh" else c["hidden_act"]
    return hf.InternVLConfig(
        text_config=text,
        vision_config=hf.InternVLVisionConfig(
            **{**c, "hidden_act": act},
            attention_bias=_biased(file),
            use_qk_norm=large,
            norm_type="rms_norm" if large else "layer_norm",
        ),
        downsample_ratio=1 / vision.merge,
        image_token_id=image,
        image_seq_length=vision.n_rows,
        tie_word_embeddings=text.tie_word_embeddings,
        attn_implementation="eager",
    )


def _vision_state(file: GGUFFile, c: Any) -> State:
    w, v, name = TensorReader(file), c.vision_config, "model.vision_tower"
    D, F, P, T = v.hidden_size, v.intermediate_size, v.patch_size[0], (v.image_size[0] // v.patch_size[0]) ** 2 + 1
    squares = round(1 / c.downsample_ratio) ** 2 * D
    middle, out = (w.shape(f"mm.model.mlp.{i}.weight")[0] for i in (1, 3))
    projector = "model.multi_modal_projector"
    state = {
        f"{name}.embeddings.cls_token": w.take("v.class_embd", (1, 1, D)),
        f"{name}.embeddings.position_embeddings": w.take("v.position_embd.weight", (1, T, D)),
        **w.affine("v.patch_embd", f"{name}.embeddings.patch_embeddings.projection", (D, 3, P, P)),
        **w.affine("mm.model.mlp.0", f"{projector}.layer_norm", (squares,)),
        **w.affine("mm.model.mlp.1", f"{projector}.linear_1", (middle, squares)),
        **w.affine("mm.model.mlp.3", f"{projector}.linear_2", (out, middle)),
    }
    for i in range(v.num_hidden_layers):
        state |= _block(w, f"v.blk.{i}", f"{name}.encoder.layer.{i}", D, F)
        if v.use_qk_norm:
            for part in "qk":
                gain = w.take(f"v.blk.{i}.attn_{part}_norm.weight", (D,))
                state[f"{name}.encoder.layer.{i}.attention.{part}_norm.weight"] = gain
    w.finish()
    absent = (() if v.attention_bias else UNBIASED) + (RMS if v.use_qk_norm else ())
    return {key: x for key, x in state.items() if not key.endswith(absent)}


UNBIASED = tuple(f"attention.{part}_proj.bias" for part in "qkv")
RMS = ("layernorm_before.bias", "layernorm_after.bias")


def _block(w: TensorReader, name: str, to: str, D: int, F: int) -> State:
    state = {}
    for key, tensor in tower_block(w, name, to, D, F).items():
        for other, theirs in THEIRS.items():
            key = key.replace(other, theirs)
        state[key] = tensor
    return state | {f"{to}.lambda_{i}": w.take(f"{name}.ls{i}.weight", (D,)) for i in (1, 2)}
