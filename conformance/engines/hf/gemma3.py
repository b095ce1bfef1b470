"""Load a Gemma 3 pair into transformers' Gemma3ForConditionalGeneration, or Gemma3ForCausalLM without a tower.

The GGUF's norm weights hold the +1 that transformers adds, so it is taken off again; rows of Q and K are in the same
order in both; `mm.input_projection` is stored as transformers has it. D width, dh head size, F MLP width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from llava_ref.gguf.file import GGUFFile

from .model import HfModel, refuse, transformers
from .settings import LARGE, VisionSettings, read_tower, whole
from .tensors import TensorReader, tower_block

SOFT_TOKEN = "<image_soft_token>"
BLOCKS_27B = 62  # with so many, the attention scale is another: llama-model.cpp b11549, LLM_TYPE_27B
PERIOD = 6
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def load_gemma3(text: GGUFFile, mmproj: GGUFFile | None) -> HfModel:
    """Load a pair, or a text file alone. Raises ReferenceError for what transformers cannot express."""
    hf, config = transformers(), text_config(text)
    prefix = "model." if mmproj is None else "model.language_model."
    state = _text_state(text, config, prefix)
    tokens = text.array("tokenizer.ggml.tokens", "string")
    soft = tokens.index(SOFT_TOKEN) if SOFT_TOKEN in tokens else len(tokens)
    vision, kind = None, hf.Gemma3ForCausalLM
    if mmproj is not None:
        vision, kind = read_tower(mmproj), hf.Gemma3ForConditionalGeneration
        config = _joined(config, vision, soft)
        state |= _vision_state(mmproj, config)
    with torch.device("meta"):  # random weights would take time and memory
        module = kind(config)
    module.load_state_dict(state, assign=True)
    model = HfModel(module.eval(), "gemma3", text, len(tokens), soft, vision)
    _fill_buffers(model)
    return model


def text_config(file: GGUFFile) -> Any:
    """Return the Gemma3TextConfig that the file's keys say. Keys: llama-arch.cpp b11549."""
    a, blocks = "gemma3.attention.", file.integer("gemma3.block_count", 1, LARGE)
    width, n_head = file.integer("gemma3.embedding_length", 1, LARGE), whole(file, a + "head_count", None, blocks)
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if file.number(f"gemma3.{cap}", 0.0, 1e9, 0.0):
            raise refuse(file, f"gemma3.{cap}", "is not 0")
    head_size = whole(file, a + "key_length", width // n_head, blocks)
    window = whole(file, a + "sliding_window", 0, blocks)
    period = file.integer(a + "sliding_window_pattern", 1, LARGE, PERIOD) if window else 1
    return transformers().Gemma3TextConfig(
        vocab_size=file.array_length("tokenizer.ggml.tokens"),
        hidden_size=width,
        intermediate_size=whole(file, "gemma3.feed_forward_length", None, blocks),
        num_hidden_layers=blocks,
        num_attention_heads=n_head,
        num_key_value_heads=whole(file, a + "head_count_kv", n_head, blocks),
        head_dim=head_size,
        query_pre_attn_scalar=width // n_head if blocks == BLOCKS_27B else head_size,
        max_position_embeddings=file.integer("gemma3.context_length", 1, LARGE),
        rms_norm_eps=file.number(a + "layer_norm_rms_epsilon", 0.0, 1.0, layers=blocks),
        sliding_window=window or LARGE,
        layer_types=["sliding_attention" if (i + 1) % period else "full_attention" for i in range(blocks)],
        rope_parameters=_rope(file),
        tie_word_embeddings="output.weight" not in file.tensors,
        pad_token_id=None,
        attn_implementation="eager",
    )


def _rope(file: GGUFFile) -> dict[str, dict[str, Any]]:
    r, local = "gemma3.rope.", {"rope_type": "default"}
    factor = file.number(r + "scaling.factor", 0.0, 1e9, 0.0)
    kind = file.string(r + "scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise refuse(file, r + "scaling.type", repr(kind))
    scaled = {"rope_type": "linear", "factor": factor} if factor and kind == "linear" else local
    return {
        "full_attention": scaled | {"rope_theta": file.number(r + "freq_base", 0.0, 1e15, 1e4)},
        "sliding_attention": local | {"rope_theta": file.number(r + "freq_base_swa", 0.0, 1e15, 1e4)},
    }


def _text_state(file: GGUFFile, c: Any, prefix: str) -> dict[str, Tensor]:
    w, D, V = TensorReader(file), c.hidden_size, c.vocab_size
    embedding = w.take("token_embd.weight", (V, D))
    output = w.maybe("output.weight", (V, D))
    state = {
        f"{prefix}embed_tokens.weight": embedding,
        "lm_head.weight": embedding if output is None else output,
        f"{prefix}norm.weight": w.take("output_norm.weight", (D,)) - 1,
    }
    for i in range(c.num_hidden_layers):
        state |= _block_state(w, f"blk.{i}", f"{prefix}layers.{i}", c)
    w.finish()
    return state


def _block_state(w: TensorReader, name: str, to: str, c: Any) -> dict[str, Tensor]:
    D, F, dh = c.hidden_size, c.intermediate_size, c.head_dim
    Q, KV = c.num_attention_heads * dh, c.num_key_value_heads * dh
    matrices = {
        "self_attn.q_proj": ("attn_q", (Q, D)),
        "self_attn.k_proj": ("attn_k", (KV, D)),
        "self_attn.v_proj": ("attn_v", (KV, D)),
        "self_attn.o_proj": ("attn_output", (D, Q)),
        "mlp.gate_proj": ("ffn_gate", (F, D)),
        "mlp.up_proj": ("ffn_up", (F, D)),
        "mlp.down_proj": ("ffn_down", (D, F)),
    }
    state = {f"{to}.{part}.weight": w.take(f"{name}.{gguf}.weight", shape) for part, (gguf, shape) in matrices.items()}
    norms = {part: (gguf, D) for part, gguf in LAYER.items()}
    norms |= {"self_attn.q_norm": ("attn_q_norm", dh), "self_attn.k_norm": ("attn_k_norm", dh)}
    for part, (gguf, size) in norms.items():
        state[f"{to}.{part}.weight"] = w.take(f"{name}.{gguf}.weight", (size,)) - 1
    return state


def _joined(text: Any, vision: VisionSettings, soft: int) -> Any:
    hf = transformers()
    return hf.Gemma3Config(
        text_config=text,
        vision_config=hf.SiglipVisionConfig(**vision.config, vision_use_head=False),
        image_token_index=soft,
        mm_tokens_per_image=vision.n_rows,
        tie_word_embeddings=text.tie_word_embeddings,
        attn_implementation="eager",
    )


def _vision_state(file: GGUFFile, c: Any) -> dict[str, Tensor]:
    w, v, name = TensorReader(file), c.vision_config, "model.vision_tower"
    D, F, P, N = v.hidden_size, v.intermediate_size, v.patch_size, (v.image_size // v.patch_size) ** 2
    projector = "model.multi_modal_projector"
    state = {
        **w.affine("v.patch_embd", f"{name}.embeddings.patch_embedding", (D, 3, P, P)),
        f"{name}.embeddings.position_embedding.weight": w.take("v.position_embd.weight", (N, D)),
        **w.affine("v.post_ln", f"{name}.post_layernorm", (D,)),
        f"{projector}.mm_soft_emb_norm.weight": w.take("mm.soft_emb_norm.weight", (D,)) - 1,
        f"{projector}.mm_input_projection_weight": w.take("mm.input_projection.weight", (D, c.text_config.hidden_size)),
    }
    for i in range(v.num_hidden_layers):
        state |= tower_block(w, f"v.blk.{i}", f"{name}.encoder.layers.{i}", D, F)
    w.finish()
    return state


def _fill_buffers(model: HfModel) -> None:
    """Compute the buffers that are not stored, which are still on the device without memory."""
    decoder = model.decoder
    decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config)
    decoder.embed_tokens.embed_scale = torch.tensor(decoder.config.hidden_size**0.5)
    if model.vision is not None:
        model.module.model.vision_tower.embeddings.position_ids = torch.arange(model.vision.n_patches)[None]
    for name, buffer in [*model.module.named_buffers(), *model.module.named_parameters()]:
        assert not buffer.is_meta, f"{name} was never filled"
