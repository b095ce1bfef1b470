"""Load a pair of projector `pixtral` into transformers: Pixtral is LlavaForConditionalGeneration with a
PixtralVisionModel, Mistral Small 3.1, which merges patches, Mistral3ForConditionalGeneration.

Rows of the tower's Q and K are put back from GGUF's adjacent pairs. A file has one epsilon for the tower and the
merger; transformers has 1e-5 in its tower's code, and the text's epsilon in the merger.
D width, F MLP width, P patch, s patches a side of one row's square.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from llava_ref.gguf.file import GGUFFile

from ...convert.hf_weights import plain_name
from ..reference import ReferenceError
from .llava import fill_decoder, in_halves, text_state
from .model import Family, HfModel, transformers
from .settings import LARGE, VisionSettings, read_text, read_tower
from .tensors import TensorReader

IMAGE, MERGE = "[IMG]", "clip.vision.spatial_merge_size"
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu"}  # the tower's of this class is exact
State = dict[str, Tensor]


def load_pixtral(text: GGUFFile, mmproj: GGUFFile) -> HfModel:
    """Load a pair. Raises ReferenceError for what transformers cannot express."""
    c, vision = read_text(text), read_tower(mmproj)
    vision = replace(vision, merge=mmproj.integer(MERGE, 1, LARGE, 1))
    tokens = text.array("tokenizer.ggml.tokens", "string")
    if IMAGE not in tokens:
        raise ReferenceError(text.path, "tokenizer.ggml.tokens", f"has no {IMAGE}, the processor's image token")
    merged = "mm.patch_merger.weight" in mmproj.tensors
    config, state, divisors = text_state(text, c, extra=False)
    state |= _vision_state(mmproj, vision, merged)
    module = _module(_joined(config, vision, tokens.index(IMAGE), merged), state)
    family: Family = "mistral3" if merged else "pixtral"
    model = HfModel(module.eval(), family, text, c.n_vocab, tokens.index(IMAGE), vision)
    _fill_tower(model, mmproj)
    fill_decoder(model, c, divisors)
    return model


def _joined(text: Any, vision: VisionSettings, image: int, merged: bool) -> Any:
    hf, v = transformers(), dict(vision.config)
    v["hidden_act"] = ACTIVATIONS.get(v["hidden_act"], v["hidden_act"])
    del v["layer_norm_eps"]
    common = {
        "text_config": text,
        "vision_config": hf.PixtralVisionConfig(**v),
        "image_token_index": image,
        "vision_feature_layer": -1,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": text.tie_word_embeddings,
        "multimodal_projector_bias": True,
        "attn_implementation": "eager",
    }
    if merged:
        return hf.Mistral3Config(**common, spatial_merge_size=vision.merge)
    return hf.LlavaConfig(**common, vision_feature_select_strategy="full")


def _module(config: Any, state: State) -> Any:
    hf = transformers()
    kind = hf.Mistral3ForConditionalGeneration if config.model_type == "mistral3" else hf.LlavaForConditionalGeneration
    with torch.device("meta"):  # random weights would take time and memory
        module = kind(config)
        for part in ("linear_1", "linear_2"):  # a config has no word for the width between the projector's two matrices
            rows, columns = state[f"multi_modal_projector.{part}.weight"].shape
            setattr(module.model.multi_modal_projector, part, nn.Linear(columns, rows))
    module.load_state_dict({key: state[plain_name(key)] for key in module.state_dict()}, assign=True)
    return module


def _vision_state(file: GGUFFile, v: VisionSettings, merged: bool) -> State:
    w, c, name, projector = TensorReader(file), v.config, "vision_tower", "multi_modal_projector"
    D, P = c["hidden_size"], c["patch_size"]
    middle, out = w.shape("mm.1.weight")[0], w.shape("mm.2.weight")[0]
    state = {
        f"{name}.patch_conv.weight": w.take("v.patch_embd.weight", (D, 3, P, P)),
        f"{name}.ln_pre.weight": w.take("v.pre_ln.weight", (D,)),
        **w.affine("mm.1", f"{projector}.linear_1", (middle, D)),
        **w.affine("mm.2", f"{projector}.linear_2", (out, middle)),
    }
    if merged:
        squares = w.take("mm.patch_merger.weight", (D, v.merge**2 * D))
        state[f"{projector}.norm.weight"] = w.take("mm.input_norm.weight", (D,))
        state[f"{projector}.patch_merger.merging_layer.weight"] = squares
    for i in range(v.n_stored):
        state |= _block(w, f"v.blk.{i}", f"{name}.transformer.layers.{i}", c)
    w.take("v.token_embd.img_break", (out,))  # a token of the text here
    w.finish()
    return state


def _block(w: TensorReader, name: str, to: str, c: Any) -> State:
    D, F, H = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    state = {
        f"{to}.attention_norm.weight": w.take(f"{name}.ln1.weight", (D,)),
        f"{to}.ffn_norm.weight": w.take(f"{name}.ln2.weight", (D,)),
    }
    for part, module, turned in (("q", "q_proj", True), ("k", "k_proj", True), ("v", "v_proj", False)):
        rows = w.take(f"{name}.attn_{part}.weight", (D, D))
        state[f"{to}.attention.{module}.weight"] = in_halves(rows, H if turned else None)
    state[f"{to}.attention.o_proj.weight"] = w.take(f"{name}.attn_out.weight", (D, D))
    for part, shape in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
        state[f"{to}.feed_forward.{part}_proj.weight"] = w.take(f"{name}.ffn_{part}.weight", shape)
    return state


def _fill_tower(model: HfModel, file: GGUFFile) -> None:
    """Compute the buffers that are not stored, and set the epsilons."""
    tower, projector = model.module.model.vision_tower, model.module.model.multi_modal_projector
    turn = tower.patch_positional_embedding
    tower.patch_positional_embedding = type(turn)(turn.config)
    assert model.vision is not None
    norms = [
        tower.ln_pre,
        *(norm for layer in tower.transformer.layers for norm in (layer.attention_norm, layer.ffn_norm)),
    ]
    for norm in [*norms, projector.norm] if model.family == "mistral3" else norms:
        norm.variance_epsilon = model.vision.config["layer_norm_eps"]
