"""A GGUF pair -> transformers' own model with the dequantised weights in float32: the way back from `convert`.

D width, F MLP width, V vocabulary, H heads, dh head size. What a config of transformers 5 cannot say is an error by the
name of the key or tensor.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor, nn

from llava_ref.gguf import file as gguf
from llava_ref.gguf.file import GGUFFile, TensorView
from llava_ref.models.weights import Weights
from llava_ref.ops.protocol import Ops

from ...convert.hf_weights import plain_name
from ..reference import ReferenceError
from .settings import TextSettings, VisionSettings, read_text, read_vision

State = dict[str, Tensor]  # by the names of `conformance.convert.hf_weights.plain_name`
ATTENTION = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
MLP = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


@dataclass(frozen=True, slots=True)
class Model:
    """Ready to run."""

    module: Any  # LlavaForConditionalGeneration, or LlamaForCausalLM or MistralForCausalLM without a tower
    text: TextSettings
    vision: VisionSettings | None
    text_file: GGUFFile

    @property
    def decoder(self) -> Any:
        return self.module.model if self.vision is None else self.module.model.language_model

    @property
    def image_token(self) -> int:
        """The id that holds the place of an image row: one more than the vocabulary has."""
        return self.text.n_vocab

    @property
    def _cache(self) -> str:
        """What keys and values kept are called: transformers 5.24 changed the name."""
        return "cache" if "cache" in signature(self.module.forward).parameters else "past_key_values"

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
                output = self.module(input_ids=last, use_cache=True, **{self._cache: output[self._cache]})
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
    """Return the tensors of a file as torch float32; those that nobody takes are an error."""
    return Weights(file, cast(Ops, SimpleNamespace(weight=lambda view: torch.tensor(_numbers(view)))))


def _numbers(view: TensorView) -> np.ndarray:
    """Return a tensor as the `gguf` package reads it."""
    data = np.frombuffer(view.data, np.uint8)
    if view.type == "F64":  # which the package hands out as it is
        return data.view(np.float64).astype(np.float32).reshape(view.shape)
    return dequantize(data.reshape(1, -1), GGMLQuantizationType[view.type]).reshape(view.shape)


def _text(file: GGUFFile, c: TextSettings, *, extra: bool) -> tuple[Any, State, Tensor | None]:
    """Config, weights, and by what the rotary frequencies are divided. `extra`: a row of zeros for the image token."""
    hf, w, D, V = transformers(), _weights(file), c.config["hidden_size"], c.n_vocab
    biased = [any(f"blk.{i}.{name}.bias" in file.tensors for i in _blocks(c) for name in group.values())
              for group in (ATTENTION, MLP)]  # fmt: skip
    tied = "output.weight" not in file.tensors
    common = dict(c.config) | {"vocab_size": V + extra, "tie_word_embeddings": tied}
    if not c.window:
        config = hf.LlamaConfig(**common, attention_bias=biased[0], mlp_bias=biased[1])
    elif any(biased):
        raise refuse(file, "llama.attention.sliding_window", "with biases")
    else:
        config = hf.MistralConfig(**common, sliding_window=c.window)
    embedding = _longer(w.take("token_embd.weight", (V, D)), extra)
    output = embedding if tied else _longer(w.take("output.weight", (V, D)), extra)
    state = {"language_model.embed_tokens.weight": embedding, "lm_head.weight": output}
    state["language_model.norm.weight"] = w.take("output_norm.weight", (D,))
    for i in _blocks(c):
        state |= _text_block(w, f"blk.{i}", f"language_model.layers.{i}", config, biased)
    divisors = w.maybe("rope_freqs.weight", (c.config["head_dim"] // 2,))
    w.finish()
    return config, state, cast(Tensor | None, divisors)


def _blocks(c: TextSettings) -> range:
    return range(c.config["num_hidden_layers"])


def _longer(rows: Tensor, extra: bool) -> Tensor:
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])]) if extra else rows


def _text_block(w: Weights, name: str, to: str, c: Any, biased: list[bool]) -> State:
    D, F = c.hidden_size, c.intermediate_size
    Q, KV = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    shapes = {"q_proj": (Q, D), "k_proj": (KV, D), "v_proj": (KV, D), "o_proj": (D, Q)}
    shapes |= {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}
    state = {
        f"{to}.input_layernorm.weight": w.take(f"{name}.attn_norm.weight", (D,)),
        f"{to}.post_attention_layernorm.weight": w.take(f"{name}.ffn_norm.weight", (D,)),
    }
    for part, group, has_bias in (("self_attn", ATTENTION, biased[0]), ("mlp", MLP, biased[1])):
        for module, stored in group.items():
            affine = w.affine(f"{name}.{stored}", shapes[module])
            n_head = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(module)
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


def _vision(file: GGUFFile, c: VisionSettings) -> tuple[Any, State]:
    w, name, config = _weights(file), "vision_tower", transformers().CLIPVisionConfig(**c.config)
    D, F, P, n_used = config.hidden_size, config.intermediate_size, config.patch_size, config.num_hidden_layers
    for tensor in ("v.class_embd", "v.pre_ln.weight"):
        if tensor not in file.tensors:
            raise ReferenceError(file.path, tensor, "missing tensor: transformers' CLIP tower always has one")
    if F == D:
        raise ReferenceError(file.path, "clip.vision.feed_forward_length", "equals embedding_length: what is ffn_up?")
    state = {
        f"{name}.embeddings.class_embedding": w.take("v.class_embd", (D,)),
        f"{name}.embeddings.patch_embedding.weight": w.take("v.patch_embd.weight", (D, 3, P, P)),
        f"{name}.embeddings.position_embedding.weight": w.take("v.position_embd.weight", (c.n_patches + 1, D)),
        **_affine(w, "v.pre_ln", f"{name}.pre_layrnorm", (D,)),  # sic
        f"{name}.post_layernorm.weight": torch.ones(D),  # not on the projector's way
        f"{name}.post_layernorm.bias": torch.zeros(D),
    }
    for i in range(n_used):
        state |= _vision_block(w, f"v.blk.{i}", f"{name}.encoder.layers.{i}", D, F)
    middle, out = w.matrix_shape("mm.0.weight")[0], w.matrix_shape("mm.2.weight")[0]
    state |= _affine(w, "mm.0", "multi_modal_projector.linear_1", (middle, D))
    state |= _affine(w, "mm.2", "multi_modal_projector.linear_2", (out, middle))
    w.finish(("v.post_ln.", *(f"v.blk.{i}." for i in range(n_used, c.n_stored))))
    return config, state


def _vision_block(w: Weights, name: str, to: str, D: int, F: int) -> State:
    swapped = w.matrix_shape(f"{name}.ffn_down.weight") == (F, D)  # as llama.cpp's first converter named them
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


def _joined(text: Any, vision: Any, c: TextSettings) -> Any:
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
    """Compute what is not stored, which is still on the device without memory, and set what no config can say."""
    decoder = model.decoder
    rotary = decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config)
    rotary.attention_scaling *= model.text.length
    for layer in decoder.layers if model.text.scale else ():
        layer.self_attn.scaling = model.text.scale
    if divisors is not None:  # Llama 3's scaling, as its converter writes it
        rotary.inv_freq = rotary.inv_freq / divisors
    if model.vision is not None:
        model.module.model.vision_tower.embeddings.position_ids = torch.arange(model.vision.n_patches + 1)[None]
    for name, buffer in [*model.module.named_buffers(), *model.module.named_parameters()]:
        assert not buffer.is_meta, f"{name} was never filled"
