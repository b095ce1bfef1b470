"""Load a pair of projector `idefics3` into transformers' Idefics3ForConditionalGeneration.

SmolVLM's class computes the same; a file does not say which of the two it was. D width, F MLP width, s patches along a
side of one row's square.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llava_ref.gguf.file import GGUFFile

from ..reference import ReferenceError
from .llava import fill_decoder, text_state
from .model import HfModel, transformers
from .settings import LARGE, VisionSettings, read_text, read_tower
from .tensors import TensorReader, tower_block

IMAGE, LONGEST = "<image>", "clip.vision.preproc_image_size"


def load_idefics3(text: GGUFFile, mmproj: GGUFFile) -> HfModel:
    """Load a pair. Raises ReferenceError for what transformers cannot express."""
    c, vision = read_text(text), read_tower(mmproj)
    longest = mmproj.integer(LONGEST, 0, LARGE, 0) or 4 * vision.image_size
    vision = replace(vision, longest=longest)
    tokens = text.array("tokenizer.ggml.tokens", "string")
    if IMAGE not in tokens:
        raise ReferenceError(text.path, "tokenizer.ggml.tokens", f"has no {IMAGE}, the processor's image token")
    config, state, divisors = text_state(text, c, extra=False)
    named = {name.replace("language_model.", "model.text_model."): tensor for name, tensor in state.items()}
    config = _joined(config, vision, tokens.index(IMAGE))
    with torch.device("meta"):  # random weights would take time and memory
        module = transformers().Idefics3ForConditionalGeneration(config)
    module.load_state_dict(named | _vision_state(mmproj, config), assign=True)
    model = HfModel(module.eval(), "idefics3", text, c.n_vocab, tokens.index(IMAGE), vision)
    fill_decoder(model, c, divisors)
    return model


def _joined(text: Any, vision: VisionSettings, image: int) -> Any:
    hf = transformers()
    return hf.Idefics3Config(
        text_config=text,
        vision_config=hf.models.idefics3.configuration_idefics3.Idefics3VisionConfig(**vision.config),
        scale_factor=vision.merge,
        image_token_id=image,
        tie_word_embeddings=text.tie_word_embeddings,
        attn_implementation="eager",
    )


def _vision_state(file: GGUFFile, c: Any) -> dict[str, Tensor]:
    w, v, name = TensorReader(file), c.vision_config, "model.vision_model"
    D, F, P, N = v.hidden_size, v.intermediate_size, v.patch_size, (v.image_size // v.patch_size) ** 2
    shape = (c.text_config.hidden_size, c.scale_factor**2 * D)
    state = {
        **w.affine("v.patch_embd", f"{name}.embeddings.patch_embedding", (D, 3, P, P)),
        f"{name}.embeddings.position_embedding.weight": w.take("v.position_embd.weight", (N, D)),
        **w.affine("v.post_ln", f"{name}.post_layernorm", (D,)),
        "model.connector.modality_projection.proj.weight": w.take("mm.model.fc.weight", shape),
    }
    for i in range(v.num_hidden_layers):
        state |= tower_block(w, f"v.blk.{i}", f"{name}.encoder.layers.{i}", D, F)
    w.finish()
    return state
