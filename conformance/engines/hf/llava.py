"""Load a LLaVA pair into transformers' LlavaForConditionalGeneration, one of LLaVA-1.6 into LlavaNext..., a llama text
file into its ...ForCausalLM.

D width, F MLP width, V vocabulary, H heads, dh head size. A setting that a config of transformers 5 cannot
express is an error by the name of the key or tensor.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llava_ref.gguf.file import GGUFFile

from ...convert.hf_weights import plain_name
from ..reference import ReferenceError
from .model import Family, HfModel, refuse, transformers
from .settings import TextSettings, VisionSettings, read_text, read_vision
from .tensors import TensorReader, tower_block

State = dict[str, Tensor]  # by the names of `conformance.convert.hf_weights.plain_name`
ATTENTION = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
MLP = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


def load_llava(text_file: GGUFFile, mmproj_file: GGUFFile | None) -> HfModel:
    """Load a pair, or a text file alone. Raises ReferenceError for what transformers cannot express."""
    c = read_text(text_file)
    config, state, divisors = text_state(text_file, c, extra=mmproj_file is not None)
    v = None
    if mmproj_file is not None:
        v = read_vision(mmproj_file)
        vision_config, vision_state = _vision(mmproj_file, v)
        config, state = _joined(config, vision_config, c, v), state | vision_state
    # An image row's id is one more than the vocabulary has.
    family: Family = "llava_next" if v is not None and v.sizes else "llava"
    model = HfModel(_module(config, state), family, text_file, c.n_vocab, c.n_vocab, v)
    _fill_buffers(model, c, divisors)
    return model


def text_state(file: GGUFFile, c: TextSettings, *, extra: bool) -> tuple[Any, State, Tensor | None]:
    """Return config, weights, and the divisors of rotary frequencies. `extra`: a row of zeros for the image token."""
    hf, w, D, V = transformers(), TensorReader(file), c.config["hidden_size"], c.n_vocab
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
        state |= text_block(w, f"blk.{i}", f"language_model.layers.{i}", config, biased)
    divisors = w.maybe("rope_freqs.weight", (c.config["head_dim"] // 2,))
    w.finish()
    return config, state, divisors


def _blocks(c: TextSettings) -> range:
    return range(c.config["num_hidden_layers"])


def _longer(rows: Tensor, extra: bool) -> Tensor:
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])]) if extra else rows


def text_block(w: TensorReader, name: str, to: str, c: Any, biased: list[bool]) -> State:
    """Return the tensors of a block of llama by transformers' names; `biased`: whether attention and MLP are."""
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
            n_head = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(module)
            weight = w.take(f"{name}.{stored}.weight", shapes[module])
            state[f"{to}.{part}.{module}.weight"] = in_halves(weight, n_head)
            if has_bias:
                bias = w.bias(f"{name}.{stored}", shapes[module][0])
                state[f"{to}.{part}.{module}.bias"] = in_halves(bias, n_head)
    return state


def in_halves(rows: Tensor, n_head: int | None) -> Tensor:
    """Reorder rows (H * dh, ...) from GGUF's order, where channels 2i and 2i + 1 of a head turn together, to
    transformers', where i and i + dh / 2 do. None: leave them."""
    if n_head is None:
        return rows
    return rows.reshape(n_head, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _vision(file: GGUFFile, c: VisionSettings) -> tuple[Any, State]:
    w, name, config = TensorReader(file), "vision_tower", transformers().CLIPVisionConfig(**c.config)
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
        **w.affine("v.pre_ln", f"{name}.pre_layrnorm", (D,)),  # sic
        f"{name}.post_layernorm.weight": torch.ones(D),  # not on the projector's way
        f"{name}.post_layernorm.bias": torch.zeros(D),
    }
    for i in range(n_used):
        state |= tower_block(w, f"v.blk.{i}", f"{name}.encoder.layers.{i}", D, F)
    middle, out = w.shape("mm.0.weight")[0], w.shape("mm.2.weight")[0]
    state |= w.affine("mm.0", "multi_modal_projector.linear_1", (middle, D))
    state |= w.affine("mm.2", "multi_modal_projector.linear_2", (out, middle))
    if c.sizes:
        merge = file.string("clip.vision.mm_patch_merge_type", "spatial_unpad")
        if merge != "spatial_unpad":
            raise refuse(file, "clip.vision.mm_patch_merge_type", repr(merge))
        old = "model.image_newline" in file.tensors
        state["image_newline"] = w.take("model.image_newline" if old else "v.image_newline", (out,))
    w.finish(("v.post_ln.", *(f"v.blk.{i}." for i in range(n_used, c.n_stored))))
    return config, state


def _joined(text: Any, vision: Any, c: TextSettings, v: VisionSettings) -> Any:
    hf = transformers()
    tiled = {"image_grid_pinpoints": [[height, width] for width, height in v.sizes]} if v.sizes else {}
    return (hf.LlavaNextConfig if v.sizes else hf.LlavaConfig)(
        **tiled,
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
    classes = {
        "llava": "LlavaForConditionalGeneration",
        "llava_next": "LlavaNextForConditionalGeneration",
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
    }
    llava = config.model_type in ("llava", "llava_next")
    with torch.device("meta"):  # random weights would take time and memory
        module: Any = getattr(hf, classes[config.model_type])(config)
        if llava:  # a config has no word for the width between the projector's two matrices
            for part in ("linear_1", "linear_2"):
                rows, columns = state[f"multi_modal_projector.{part}.weight"].shape
                setattr(module.model.multi_modal_projector, part, nn.Linear(columns, rows))
    prefix = "" if llava else "language_model."
    names = {key: plain_name(key) for key in module.state_dict()}
    full = {key: name if name.startswith("lm_head") else prefix + name for key, name in names.items()}
    module.load_state_dict({key: state[name] for key, name in full.items()}, assign=True)
    return module.eval()


def _fill_buffers(model: HfModel, c: TextSettings, divisors: Tensor | None) -> None:
    """Compute the buffers that are not stored, and set what no config can say."""
    if model.vision is not None:
        model.module.model.vision_tower.embeddings.position_ids = torch.arange(model.vision.n_patches + 1)[None]
    fill_decoder(model, c, divisors)


def fill_decoder(model: HfModel, c: TextSettings, divisors: Tensor | None) -> None:
    """Compute the decoder's buffers, still on the device without memory, and set what no config can say."""
    decoder = model.decoder
    rotary = decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config)
    rotary.attention_scaling *= c.length
    for layer in decoder.layers if c.scale else ():
        layer.self_attn.scaling = c.scale
    if divisors is not None:  # Llama 3's scaling, as its converter writes it
        rotary.inv_freq = rotary.inv_freq / divisors
    for name, buffer in [*model.module.named_buffers(), *model.module.named_parameters()]:
        assert not buffer.is_meta, f"{name} was never filled"
