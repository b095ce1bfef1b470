"""Make a small random LLaVA with transformers, and run it.

T positions, V vocabulary, N patches, D decoder width, S image size. Weights have the gains of a trained model's noise
growth (see `pairs`), because transformers' own initialisation is so small that a wrong layer hardly shows.
"""

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava_ref.extras import absent


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the model, odd on purpose."""

    n_vocab: int
    image_token: int
    width: int = 60
    n_layer: int = 3
    n_head: int = 6
    n_head_kv: int = 3
    mlp_width: int = 104
    rope: tuple[tuple[str, Any], ...] = (("rope_type", "default"), ("rope_theta", 10000.0))
    attention_bias: bool = False
    tied: bool = False
    vision_width: int = 44
    n_block: int = 5
    vision_head: int = 4
    vision_mlp: int = 88
    image_size: int = 70
    patch_size: int = 14
    use_gelu: bool = False

    @property
    def n_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


def missing() -> str | None:
    """Say why transformers cannot be asked here; None if it can."""
    return absent("conformance", ["transformers"])


def build(shape: Shape, seed: int) -> Any:
    """Make a LlavaForConditionalGeneration with random float32 weights, ready to run."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # transformers reads it when it is imported
    hf: Any = import_module("transformers")
    vision = hf.CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=shape.vision_mlp,
        num_hidden_layers=shape.n_block,
        num_attention_heads=shape.vision_head,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        hidden_act="gelu" if shape.use_gelu else "quick_gelu",
    )
    text = hf.LlamaConfig(
        vocab_size=shape.n_vocab,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.n_head,
        num_key_value_heads=shape.n_head_kv,
        max_position_embeddings=256,
        rope_parameters=dict(shape.rope),
        attention_bias=shape.attention_bias,
        tie_word_embeddings=shape.tied,
    )
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=shape.image_token,
        image_seq_length=shape.n_patches,
        tie_word_embeddings=shape.tied,
        attn_implementation="eager",
    )
    model = hf.LlavaForConditionalGeneration(config).eval()
    _randomise(model, seed)
    return model


def _randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * noise)
            elif "embed" in name:
                parameter.copy_(noise * (parameter[0].numel() ** -0.5 if parameter.ndim == 4 else 0.5))
            else:
                sharp = 1.6 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
                parameter.copy_(noise * sharp * parameter.shape[-1] ** -0.5)


def save(model: Any, folder: Path) -> None:
    """Save the model as a checkpoint folder: config.json and model.safetensors."""
    model.save_pretrained(folder)


@torch.no_grad()
def image_rows(model: Any, pixels: np.ndarray) -> np.ndarray:
    """Encode normalised pixels (3, S, S) to the rows that the projector gives the decoder, (N, D) float32."""
    rows: torch.Tensor = model.get_image_features(pixel_values=torch.from_numpy(pixels)[None]).pooler_output[0]
    return rows.numpy()


@torch.no_grad()
def logits(model: Any, token_ids: list[int], pixels: np.ndarray | None) -> np.ndarray:
    """Return the logits of every position, (T, V) float32. A picture is N image tokens in `token_ids`."""
    ids = torch.tensor([token_ids])
    values = None if pixels is None else torch.from_numpy(pixels)[None]
    found: torch.Tensor = model(input_ids=ids, pixel_values=values).logits[0]
    return found.numpy()
