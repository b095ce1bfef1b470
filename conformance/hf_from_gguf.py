"""A GGUF pair -> transformers' own model with the dequantised weights in float32: the way back from `convert`.

D width, F MLP width, V vocabulary, H heads, dh head size. What a config of transformers 5 cannot say is an error by the
name of the key or tensor.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from llava_ref import gguf
from llava_ref.config import TextConfig, VisionConfig, read_text, read_vision
from llava_ref.gguf import GGUFFile, TensorView
from llava_ref.ops import Ops
from llava_ref.quants import dequantize
from llava_ref.weights import Weights

from .hf_weights import plain_name
from .reference import ReferenceError

State = dict[str, Tensor]  # by the names of `hf_weights.plain_name`
ATTENTION = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
MLP = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


@dataclass(frozen=True, slots=True)
class Model:
    """Ready to run."""

    module: Any  # LlavaForConditionalGeneration, or LlamaForCausalLM or MistralForCausalLM without a tower
    text: TextConfig
    vision: VisionConfig | None
    text_file: GGUFFile

    @property
    def decoder(self) -> Any:
        return self.module.model if self.vision is None else self.module.model.language_model

    @property
    def image_token(self) -> int:
        """The id that holds the place of an image row: one more than the vocabulary has."""
        return self.text.n_vocab

    @torch.no_grad()
    def forward(self, ids: Sequence[int], pixels: np.ndarray | None) -> Any:
        """Token ids (T,) and pictures (n, 3, S, S) -> transformers' output, with logits (1, T, V + 1) and a cache."""
        pictures = {} if pixels is None else {"pixel_values": torch.from_numpy(pixels)}
        return self.module(input_ids=torch.tensor([list(ids)]), use_cache=True, **pictures)

    @torch.no_grad()
    def greedy(self, output: Any, count: int) -> tuple[int, ...]:
        """The likeliest `count` tokens after that, one by one. No token ends them."""
        tokens: list[int] = []
        for _ in range(count):
            if tokens:
                last = torch.tensor([tokens[-1:]])
                output = self.module(input_ids=last, past_key_values=output.past_key_values, use_cache=True)
            tokens.append(int(output.logits[0, -1, : self.text.n_vocab].argmax()))
        return tuple(tokens)


def load(text: Path, mmproj: Path | None) -> Model:
    """ReferenceError for what transformers has no words for; GGUFError for a file that is broken."""
    text_file = gguf.read(text)
    c = read_text(text_file)
    config, state, divisors = _text(text_file, c, extra=mmproj is not None)
    v = None
    if mmproj is not None:
        mmproj_file = gguf.read(mmproj)
        v = read_vision(mmproj_file)
        vision_config, vision_state = _vision(mmproj_file, v)
        config, state = _joined(config, vision_config, c), state | vision_state
    model = Model(_module(config, state), c, v, text_file)
    _fill_buffers(model, divisors)
    return model


def transformers() -> Any:
    """The package, told to stay offline and to keep its advice on settings to itself."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is imported, both
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return import_module("transformers")


def refuse(file: GGUFFile, field: str, problem: str) -> ReferenceError:
    return ReferenceError(file.path, field, f"{problem}: transformers' model has no place for it")


def _weights(file: GGUFFile) -> Weights:
    """Tensors of a file as torch float32; those that nobody takes are an error."""

    def weight(view: TensorView) -> Tensor:
        return torch.tensor(dequantize(view))

    return Weights(file, cast(Ops, SimpleNamespace(weight=weight)))


def _text(file: GGUFFile, c: TextConfig, *, extra: bool) -> tuple[Any, State, Tensor | None]:
    """Config, weights, and by what the rotary frequencies are divided. `extra`: a row of zeros for the image token."""
    hf, w, D, V = transformers(), _weights(file), c.width, c.n_vocab
    biased = [any(f"blk.{i}.{name}.bias" in file.tensors for i in range(c.n_layer) for name in group.values())
              for group in (ATTENTION, MLP)]  # fmt: skip
    tied = "output.weight" not in file.tensors
    common = _text_settings(c) | {"vocab_size": V + extra, "tie_word_embeddings": tied}
    if not math.isclose(c.attention_scale, c.head_size**-0.5, rel_tol=1e-6):
        raise refuse(file, "llama.attention.scale", f"{c.attention_scale:g}")
    if c.window is None:
        config = hf.LlamaConfig(**common, attention_bias=biased[0], mlp_bias=biased[1])
    elif any(biased):
        raise refuse(file, "llama.attention.sliding_window", "with biases")
    else:
        config = hf.MistralConfig(**common, sliding_window=c.window)
    embedding = _longer(w.take("token_embd.weight", (V, D)), extra)
    output = embedding if tied else _longer(w.take("output.weight", (V, D)), extra)
    state = {"language_model.embed_tokens.weight": embedding, "lm_head.weight": output}
    state["language_model.norm.weight"] = w.take("output_norm.weight", (D,))
    for i in range(c.n_layer):
        state |= _text_block(w, f"blk.{i}", f"language_model.layers.{i}", c, biased)
    divisors = w.divisors("rope_freqs.weight", c.rope.n_rot // 2)
    w.finish()
    return config, state, None if divisors is None else torch.tensor(divisors)


def _longer(rows: Tensor, extra: bool) -> Tensor:
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])]) if extra else rows


def _text_settings(c: TextConfig) -> dict[str, Any]:
    r = c.rope
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": r.base}
    if r.scaling != "none":
        rope |= {"rope_type": r.scaling, "factor": r.factor}
    if r.scaling == "yarn":
        rope["original_max_position_embeddings"] = r.original_context
        rope["attention_factor"] = r.attn_factor * (1 + 0.1 * math.log(r.factor))  # ggml multiplies by this
        rope |= {"beta_fast": r.beta_fast, "beta_slow": r.beta_slow}
    return {
        "hidden_size": c.width,
        "intermediate_size": c.mlp_width,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_head_kv,
        "head_dim": c.head_size,
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.eps,
        "rope_parameters": rope,
        "attn_implementation": "eager",
    }


def _text_block(w: Weights, name: str, to: str, c: TextConfig, biased: list[bool]) -> State:
    D, F, Q, KV = c.width, c.mlp_width, c.n_head * c.head_size, c.n_head_kv * c.head_size
    shapes = {"q_proj": (Q, D), "k_proj": (KV, D), "v_proj": (KV, D), "o_proj": (D, Q)}
    shapes |= {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}
    state = {
        f"{to}.input_layernorm.weight": w.take(f"{name}.attn_norm.weight", (D,)),
        f"{to}.post_attention_layernorm.weight": w.take(f"{name}.ffn_norm.weight", (D,)),
    }
    for part, group, has_bias in (("self_attn", ATTENTION, biased[0]), ("mlp", MLP, biased[1])):
        for module, stored in group.items():
            affine = w.affine(f"{name}.{stored}", shapes[module])
            n_head = {"q_proj": c.n_head, "k_proj": c.n_head_kv}.get(module)
            state[f"{to}.{part}.{module}.weight"] = in_halves(affine.weight, n_head)
            if has_bias:
                bias = torch.zeros(shapes[module][0]) if affine.bias is None else affine.bias
                state[f"{to}.{part}.{module}.bias"] = in_halves(bias, n_head)
    return state


def in_halves(rows: Tensor, n_head: int | None) -> Tensor:
    """(H * dh, ...) from GGUF's order, where channels 2i and 2i + 1 of a head turn together, to transformers', where i
    and i + dh / 2 do. None: as it is."""
    if n_head is None:
        return rows
    return rows.reshape(n_head, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _vision(file: GGUFFile, c: VisionConfig) -> tuple[Any, State]:
    w, D, P, name = _weights(file), c.width, c.patch_size, "vision_tower"
    n_used = c.n_stored if c.feature_layer is None else c.feature_layer
    for tensor in ("v.class_embd", "v.pre_ln.weight"):
        if tensor not in file.tensors:
            raise ReferenceError(file.path, tensor, "missing tensor: transformers' CLIP tower always has one")
    if c.mlp_width == D:
        raise ReferenceError(file.path, "clip.vision.feed_forward_length", "equals embedding_length: what is ffn_up?")
    config = transformers().CLIPVisionConfig(
        hidden_size=D,
        intermediate_size=c.mlp_width,
        num_hidden_layers=n_used,
        num_attention_heads=c.n_head,
        image_size=c.image_size,
        patch_size=P,
        hidden_act={"gelu": "gelu", "gelu_quick": "quick_gelu", "silu": "silu"}[c.activation],
        layer_norm_eps=c.eps,
    )
    state = {
        f"{name}.embeddings.class_embedding": w.take("v.class_embd", (D,)),
        f"{name}.embeddings.patch_embedding.weight": w.take("v.patch_embd.weight", (D, 3, P, P)),
        f"{name}.embeddings.position_embedding.weight": w.take("v.position_embd.weight", (c.n_patches + 1, D)),
        **_affine(w, "v.pre_ln", f"{name}.pre_layrnorm", (D,)),  # sic
        f"{name}.post_layernorm.weight": torch.ones(D),  # not on the projector's way
        f"{name}.post_layernorm.bias": torch.zeros(D),
    }
    for i in range(n_used):
        state |= _vision_block(w, f"v.blk.{i}", f"{name}.encoder.layers.{i}", D, c.mlp_width)
    middle, out = w.shape("mm.0.weight")[0], w.shape("mm.2.weight")[0]
    state |= _affine(w, "mm.0", "multi_modal_projector.linear_1", (middle, D))
    state |= _affine(w, "mm.2", "multi_modal_projector.linear_2", (out, middle))
    w.finish(("v.post_ln.", *(f"v.blk.{i}." for i in range(n_used, c.n_stored))))
    return config, state


def _vision_block(w: Weights, name: str, to: str, D: int, F: int) -> State:
    swapped = w.shape(f"{name}.ffn_down.weight") == (F, D)  # as llama.cpp's first converter named them
    up, down = ("ffn_down", "ffn_up") if swapped else ("ffn_up", "ffn_down")
    state: State = {}
    for part in ("q", "k", "v", "out"):
        state |= _affine(w, f"{name}.attn_{part}", f"{to}.self_attn.{part}_proj", (D, D))
    for norm in ("1", "2"):
        state |= _affine(w, f"{name}.ln{norm}", f"{to}.layer_norm{norm}", (D,))
    return (
        state
        | _affine(w, f"{name}.{up}", f"{to}.mlp.fc1", (F, D))
        | _affine(w, f"{name}.{down}", f"{to}.mlp.fc2", (D, F))
    )


def _affine(w: Weights, name: str, to: str, shape: tuple[int, ...]) -> State:
    """Weight and bias; no bias is one of zeros."""
    affine = w.affine(name, shape)
    return {f"{to}.weight": affine.weight, f"{to}.bias": torch.zeros(shape[0]) if affine.bias is None else affine.bias}


def _joined(text: Any, vision: Any, c: TextConfig) -> Any:
    return transformers().LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=c.n_vocab,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=vision.num_hidden_layers,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=text.tie_word_embeddings,
        attn_implementation="eager",
    )


def _module(config: Any, state: Mapping[str, Tensor]) -> Any:
    hf = transformers()
    classes = {"llava": "LlavaForConditionalGeneration", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
    with torch.device("meta"):  # random weights would take time and memory
        module: Any = getattr(hf, classes[config.model_type])(config)
        if config.model_type == "llava":  # a config has no word for the width between the projector's two matrices
            for part in ("linear_1", "linear_2"):
                rows, columns = state[f"multi_modal_projector.{part}.weight"].shape
                setattr(module.model.multi_modal_projector, part, nn.Linear(columns, rows))
    prefix = "" if config.model_type == "llava" else "language_model."
    names = {key: plain_name(key) for key in module.state_dict()}
    full = {key: name if name.startswith("lm_head") else prefix + name for key, name in names.items()}
    module.load_state_dict({key: state[name] for key, name in full.items()}, assign=True)
    return module.eval()


def _fill_buffers(model: Model, divisors: Tensor | None) -> None:
    """What is computed rather than stored is still on the device without memory."""
    decoder = model.decoder
    rotary = decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config)
    if divisors is not None:  # Llama 3's scaling, as its converter writes it
        rotary.inv_freq = rotary.inv_freq / divisors
    if model.vision is not None:
        model.module.model.vision_tower.embeddings.position_ids = torch.arange(model.vision.n_patches + 1)[None]
    for name, buffer in [*model.module.named_buffers(), *model.module.named_parameters()]:
        assert not buffer.is_meta, f"{name} was never filled"
