"""Refuse metadata keys that would change the arithmetic and that nothing here obeys, unless they say nothing.

The names are llama.cpp's (b11549, src/llama-arch.cpp and tools/mtmd/clip-impl.h) and the `gguf` package's; in
docs/metadata.md all of them stand with what each does in llama.cpp and transformers, measured.
"""

from collections.abc import Collection, Mapping
from typing import Any

from ..errors import GGUFError
from ..gguf.file import GGUFFile

NOTHING = (0, "", False)  # also 0.0; and a list of nothing else
ONE = (*NOTHING, 1)
Values = tuple[Any, ...]

# Key without "ARCHITECTURE." -> the values that ask for nothing which is not done anyway.
TEXT: Mapping[str, Values] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": NOTHING,
    "attention.max_alibi_bias": NOTHING,
    "attention.key_length_swa": NOTHING,
    "attention.value_length_swa": NOTHING,
    "attention.sliding_window_pattern": NOTHING,
    "attention.recurrent_layers": NOTHING,
    "attention.relative_buckets_count": NOTHING,
    "attention.shared_kv_layers": NOTHING,
    "attention.output_scale": ONE,
    "attention.temperature_length": NOTHING,
    "attention.temperature_scale": NOTHING,
    "attention.value_scale": ONE,
    "attn_logit_softcapping": NOTHING,
    "final_logit_softcapping": NOTHING,
    "router_logit_softcapping": NOTHING,
    "embedding_scale": ONE,
    "residual_scale": ONE,
    "logit_scale": ONE,
    "activation_sparsity_scale": NOTHING,
    "hidden_activation": (*NOTHING, "silu"),
    "interleave_moe_layer_step": NOTHING,
    "moe_every_n_layers": NOTHING,
    "leading_dense_block_count": NOTHING,
    "full_attention_interval": NOTHING,
    "nextn_predict_layers": NOTHING,
    "n_deepstack_layers": NOTHING,
    "num_loops": ONE,
    "skip_loop_final_norm": NOTHING,
    "norm_before_fc": NOTHING,
    "norm_before_residual": NOTHING,
    "rescale_every_n_layers": NOTHING,
    "swin_norm": NOTHING,
    "tensor_data_layout": (*NOTHING, "reference", "Meta AI original pth"),
    "token_shift_count": NOTHING,
    "use_parallel_residual": NOTHING,
    "embedding_length_out": NOTHING,
    "embedding_length_per_layer_input": NOTHING,
    "rope.dimension_count_swa": NOTHING,
    "rope.dimension_sections": NOTHING,
    "rope.freq_base_swa": NOTHING,
    "rope.scaling.alpha": ONE,
    "rope.scaling.yarn_ext_factor": (1, -1),
    "rope.scaling.yarn_log_multiplier": NOTHING,
}
PARTS = """
activation. adapters. altup. attn_res. attention.compress_ attention.indexer. conv_ convnext. decision. deepstack_
dense_ expert hash_layer_count hrm. hyper_connection. kda. moe_latent_size ple. posnet. selector_ shortconv. ssm.
swiglu_clamp time_ wkv. xielu. attention.q_lora_rank attention.kv_lora_rank attention.decay_lora_rank
attention.iclr_lora_rank attention.gate_lora_rank attention.output_lora_rank attention.output_group_count
attention.rope_pattern attention.value_expert_ attention.value_residual_mix_lora_rank attention.key_length_mla
attention.value_length_mla
""".split()
"""Beginnings of keys about parts that this architecture does not have."""

VISION: Mapping[str, Values] = {
    "clip.has_audio_encoder": NOTHING,
    "clip.has_gen_audio_encoder": NOTHING,
    "clip.has_minicpmv_projector": NOTHING,
    "clip.minicpmv_version": NOTHING,
    "clip.minicpmv_query_num": NOTHING,
    "clip.vision.attention.layer_norm_rms_epsilon": NOTHING,
    "clip.vision.expert_used_count": NOTHING,
    "clip.vision.image_aspect_ratio": (*NOTHING, "pad"),
    "clip.vision.image_grid_pinpoints": (),
    "clip.vision.image_max_pixels": NOTHING,
    "clip.vision.image_min_pixels": NOTHING,
    "clip.vision.image_resize_algo": (),
    "clip.vision.is_deepstack_layers": NOTHING,
    "clip.vision.mm_patch_merge_type": (*NOTHING, "flat"),
    "clip.vision.mm_projector_type": (*NOTHING, "mlp", "mlp2x_gelu"),
    "clip.vision.n_wa_pattern": NOTHING,
    "clip.vision.preproc_image_size": NOTHING,
    "clip.vision.preproc_max_tiles": ONE,
    "clip.vision.preproc_min_tiles": ONE,
    "clip.vision.projector.scale_factor": ONE,
    "clip.vision.proj_scale_factor": ONE,
    "clip.vision.rope.freq_base": NOTHING,
    "clip.vision.spatial_merge_size": ONE,
    "clip.vision.swiglu_clamp": NOTHING,
    "clip.vision.wa_layer_indexes": (),
    "clip.vision.wa_pattern_mode": (),
    "clip.vision.window_size": NOTHING,
}
VISION_PARTS = ("clip.vision.projector.query_side", "clip.vision.projector.window_side", "clip.vision.sam.",
                "clip.vision.projector.spatial_offsets", "clip.audio.", "clip.gen.")  # fmt: skip


WORDS = {  # what a key is about, where its name does not say it
    "llama.attention.causal": "answers are made from what stands before",
    "llama.expert": "mixtures of experts",
    "llama.rope.dimension_sections": "positions in two dimensions",
    "clip.vision.image_grid_pinpoints": "tiled pictures (LLaVA-1.6)",
    "clip.vision.mm_patch_merge_type": "tiled pictures (LLaVA-1.6)",
    "clip.vision.image_aspect_ratio": "tiled pictures (LLaVA-1.6), or a square that --quirk square= does not name",
}


def refuse_text(file: GGUFFile, arch: str, obeyed: Collection[str]) -> None:
    """Raise GGUFError for the first key of a decoder that asks for what is not done here, `obeyed` ones left out."""
    keys = {f"{arch}.{name}": values for name, values in TEXT.items() if name not in obeyed}
    _refuse(file, keys, tuple(f"{arch}.{name}" for name in PARTS))


def refuse_vision(file: GGUFFile, obeyed: Collection[str]) -> None:
    """Raise GGUFError for the first key of a tower that asks for what is not done here, `obeyed` ones left out."""
    _refuse(file, {name: values for name, values in VISION.items() if name not in obeyed}, VISION_PARTS)


def _refuse(file: GGUFFile, keys: Mapping[str, Values], parts: tuple[str, ...]) -> None:
    for key in file:
        accepted = NOTHING if key.startswith(parts) else keys.get(key)
        if accepted is None:
            continue
        value = file[key]
        if not all(item in accepted for item in (value if isinstance(value, list) else [value])):
            raise GGUFError(file.path, key, f"{_short(value)} is not supported{_expected(key, accepted)}")


def _expected(key: str, accepted: Values) -> str:
    why = next((f": {words}" for start, words in WORDS.items() if key.startswith(start)), "")
    return f"{why}, expected {'' if accepted in (NOTHING, ()) else f'{accepted[-1]!r} or '}no such key"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
