"""List every metadata key that llama.cpp or transformers know for these files, its fate here, and a value to try.

`effects` puts each into a random pair and measures how far the outcome moves in llama.cpp and in transformers;
docs/metadata.md shows the results.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..pairs.pairs import TextSpec, VisionSpec
from ..pairs.writing import Value

Base = Literal["plain", "linear", "yarn", "tower", "ids"]
Fate = Literal["obeyed", "refused", "no effect"]
BASES: dict[Base, TextSpec | VisionSpec] = {
    "plain": TextSpec(),
    "linear": TextSpec(rope_scaling="linear"),
    "yarn": TextSpec(rope_scaling="yarn", rope_base=500.0, original_context=64),
    "tower": VisionSpec(feature_layer=3),
    "ids": TextSpec(n_layer=1),
}


@dataclass(frozen=True, slots=True, eq=False)
class KeyRow:
    """Describes a key with a value, put into a pair of this base. `quirk`: the quirk that decides its fate, if any."""

    key: str
    value: Value
    base: Base
    fate: Fate
    quirk: str | None = None

    @property
    def name(self) -> str:
        return f"{self.key} = {self.value} in {self.base}"


def rows() -> Iterator[KeyRow]:
    """Yield every row, in the order of the page."""
    yield from (KeyRow(f"llama.{key}", value, base, fate) for key, value, base, fate in TEXT)
    yield from (KeyRow(f"llama.{key}", value, base, "obeyed", quirk) for key, value, base, quirk in BY_QUIRK)
    yield from (KeyRow(f"llama.{key}", value, "plain", "refused") for key, value in OTHER_TEXT)
    yield from (KeyRow(f"llama.{key}", 2, "plain", "refused") for key in OTHER_PARTS.split())
    yield from (KeyRow(f"clip.{key}", value, "tower", fate) for key, value, fate in TOWER)
    yield from (KeyRow(key, value, "ids", fate) for key, value, fate in IDS)
    yield KeyRow("tokenizer.ggml.add_eos_token", True, "ids", "obeyed", "end_token")


TEXT: tuple[tuple[str, Value, Base, Fate], ...] = (
    ("block_count", 2, "plain", "obeyed"),
    ("context_length", 64, "plain", "no effect"),
    ("context_length", 128, "yarn", "no effect"),  # the original context is named
    ("embedding_length", 44, "plain", "obeyed"),
    ("feed_forward_length", 60, "plain", "obeyed"),
    ("feed_forward_length", [80, 80, 80], "plain", "no effect"),
    ("feed_forward_length", [80, 80, 60], "plain", "refused"),
    ("vocab_size", 100, "plain", "no effect"),
    ("attention.head_count", 2, "plain", "obeyed"),
    ("attention.head_count", [4, 4, 4], "plain", "no effect"),
    ("attention.head_count", [4, 4, 2], "plain", "refused"),
    ("attention.head_count_kv", 1, "plain", "obeyed"),
    ("attention.head_count_kv", [2, 2, 2], "plain", "no effect"),
    ("attention.head_count_kv", [2, 2, 1], "plain", "refused"),
    ("attention.key_length", 12, "plain", "no effect"),
    ("attention.key_length", 16, "plain", "obeyed"),
    ("attention.value_length", 12, "plain", "no effect"),
    ("attention.value_length", 8, "plain", "refused"),
    ("attention.layer_norm_rms_epsilon", 0.05, "plain", "obeyed"),
    ("attention.layer_norm_epsilon", 0.5, "plain", "no effect"),
    ("attention.group_norm_epsilon", 0.5, "plain", "no effect"),
    ("attention.group_norm_groups", 2, "plain", "no effect"),
    ("attention.causal", True, "plain", "no effect"),
    ("attention.causal", False, "plain", "refused"),
    ("rope.dimension_count", 12, "plain", "no effect"),
    ("rope.dimension_count", 6, "plain", "refused"),
    ("rope.freq_base", 500.0, "plain", "obeyed"),
    ("rope.freq_base", 100.0, "yarn", "obeyed"),
    ("rope.scale_linear", 4.0, "plain", "obeyed"),
    ("rope.scale_linear", 8.0, "linear", "no effect"),  # scaling.factor counts
    ("rope.scaling.type", "none", "linear", "obeyed"),
    ("rope.scaling.type", "none", "yarn", "obeyed"),
    ("rope.scaling.type", "yarn", "linear", "obeyed"),
    ("rope.scaling.type", "yarn", "plain", "no effect"),  # without a factor
    ("rope.scaling.type", "longrope", "linear", "refused"),
    ("rope.scaling.type", "su", "linear", "refused"),
    ("rope.scaling.type", "dynamic", "linear", "refused"),
    ("rope.scaling.type", "llama3", "linear", "refused"),
    ("rope.scaling.factor", 4.0, "plain", "obeyed"),
    ("rope.scaling.factor", 0.0, "linear", "obeyed"),
    ("rope.scaling.factor", 8.0, "yarn", "obeyed"),
    ("rope.scaling.factor", 1.0, "yarn", "obeyed"),
    ("rope.scaling.factor", 0.5, "yarn", "obeyed"),
    ("rope.scaling.original_context_length", 64, "linear", "no effect"),
    ("rope.scaling.original_context_length", 16, "yarn", "obeyed"),
    ("rope.scaling.original_context_length", 5, "yarn", "obeyed"),
    ("rope.scaling.original_context_length", 2, "yarn", "refused"),
    ("rope.scaling.attn_factor", 0.5, "plain", "obeyed"),
    ("rope.scaling.attn_factor", 0.5, "linear", "obeyed"),
    ("rope.scaling.attn_factor", 0.5, "yarn", "obeyed"),
    ("rope.scaling.finetuned", True, "yarn", "no effect"),
    ("rope.scaling.yarn_beta_fast", 8.0, "plain", "no effect"),
    ("rope.scaling.yarn_beta_slow", 3.0, "linear", "no effect"),
    ("rope.scaling.yarn_attn_factor", 0.5, "linear", "no effect"),
    ("rope.scaling.yarn_beta_fast", 0.0, "yarn", "no effect"),
    ("rope.scaling.yarn_ext_factor", 1.0, "yarn", "no effect"),
    ("pooling_type", 1, "plain", "no effect"),
    ("block_size", 8, "plain", "no effect"),
    ("decoder_start_token_id", 5, "plain", "no effect"),
    ("decoder_block_count", 2, "plain", "no effect"),
    ("features_length", 8, "plain", "no effect"),
    ("classifier.output_labels", ["a"], "plain", "no effect"),
    ("classifier.activation", "gelu", "plain", "no effect"),
    ("classifier.pooling_type", 1, "plain", "no effect"),
    ("selector_top_k", 0, "plain", "no effect"),
    ("target_hidden_size", 8, "plain", "no effect"),
    ("target_layers", [1], "plain", "no effect"),
    ("tensor_data_layout", "Meta AI original pth", "plain", "no effect"),
    ("tensor_data_layout", "other", "plain", "refused"),
    ("expert_count", 0, "plain", "no effect"),
    ("logit_scale", 1.0, "plain", "no effect"),
)
BY_QUIRK: tuple[tuple[str, Value, Base, str], ...] = (
    ("attention.sliding_window", 8, "plain", "window"),
    ("attention.scale", 0.9, "plain", "attention_scale"),
    ("rope.scaling.yarn_beta_fast", 1.5, "yarn", "yarn_keys"),
    ("rope.scaling.yarn_beta_slow", 6.0, "yarn", "yarn_keys"),
    ("rope.scaling.yarn_attn_factor", 0.5, "yarn", "yarn_keys"),
)
OTHER_TEXT: tuple[tuple[str, Value], ...] = (
    ("attention.clamp_kqv", 0.5), ("attention.max_alibi_bias", 8.0), ("attention.sliding_window_pattern", 2),
    ("attention.output_scale", 0.5), ("attention.value_scale", 0.5), ("attention.temperature_length", 8),
    ("attention.temperature_scale", 0.5), ("attention.relative_buckets_count", 8), ("attention.shared_kv_layers", 1),
    ("attention.recurrent_layers", [1]), ("attention.key_length_swa", 8), ("attention.value_length_swa", 8),
    ("attn_logit_softcapping", 5.0), ("final_logit_softcapping", 5.0), ("router_logit_softcapping", 5.0),
    ("logit_scale", 0.5), ("residual_scale", 0.5), ("embedding_scale", 2.0), ("activation_sparsity_scale", [1.5]),
    ("use_parallel_residual", True), ("swin_norm", True), ("hidden_activation", "gelu"),
    ("rescale_every_n_layers", 1), ("token_shift_count", 1), ("nextn_predict_layers", 1), ("n_deepstack_layers", 1),
    ("interleave_moe_layer_step", 2), ("moe_every_n_layers", 2), ("leading_dense_block_count", 1),
    ("full_attention_interval", 2), ("num_loops", 2), ("skip_loop_final_norm", True), ("norm_before_fc", True),
    ("norm_before_residual", True), ("embedding_length_out", 8), ("embedding_length_per_layer_input", 8),
    ("rope.dimension_count_swa", 6), ("rope.dimension_sections", [2, 2, 2, 0]), ("rope.freq_base_swa", 500.0),
    ("rope.scaling.alpha", 4.0), ("rope.scaling.yarn_ext_factor", 0.5), ("rope.scaling.yarn_log_multiplier", 0.1),
)  # fmt: skip
OTHER_PARTS = """
activation.situ_beta activation.situ_linear_beta adapters.count adapters.lora_rank adapters.router_gain
adapters.token_ids_activate adapters.token_ids_substitute altup.active_idx altup.num_inputs attn_res.block_size
attention.compress_ratios attention.compress_rope_freq_base attention.decay_lora_rank attention.gate_lora_rank
attention.iclr_lora_rank attention.indexer.block_size attention.indexer.head_count attention.indexer.key_length
attention.indexer.kpool attention.indexer.kpool_select_tail attention.indexer.local_blocks attention.indexer.top_k
attention.indexer.types attention.key_length_mla attention.key_length_mla_swa attention.kv_lora_rank
attention.kv_lora_rank_swa attention.output_group_count attention.output_lora_rank attention.q_lora_rank
attention.rope_pattern attention.value_expert_count attention.value_expert_used_count attention.value_length_mla
attention.value_length_mla_swa attention.value_residual_mix_lora_rank conv_group_size conv_kernel_size
convnext.block_count convnext.embedding_length decision.block_count decision.head_count decision.routing_block_count
deepstack_mapping dense_2_feat_in dense_2_feat_out dense_3_feat_in dense_3_feat_out expert_chunk_feed_forward_length
expert_count expert_feed_forward_length expert_gating_func expert_group_count expert_group_scale
expert_group_used_count expert_latent_length expert_shared_count expert_shared_feed_forward_length expert_used_count
expert_weights_norm expert_weights_scale experts_per_group hash_layer_count hrm.h_cycles hrm.l_cycles
hrm.layers_per_stack hrm.prefix_lm hyper_connection.count hyper_connection.epsilon hyper_connection.low_rank
hyper_connection.magnitude hyper_connection.sinkhorn_iterations kda.gate_lower_bound kda.head_dim kda.safe_gate
moe_latent_size ple.conv_kernel ple.eos_token_id ple.head_offsets ple.head_vocab_sizes ple.heads_per_ngram
ple.image_token_id ple.layer_multipliers ple.layers ple.ngram_size posnet.block_count posnet.embedding_length
selector_rank selector_top_k shortconv.l_cache ssm.conv_kernel ssm.dt_b_c_rms ssm.group_count ssm.inner_size
ssm.state_size ssm.time_step_rank swiglu_clamp_exp swiglu_clamp_shexp time_decay_extra_dim time_mix_extra_dim
wkv.head_size
"""
TOWER: tuple[tuple[str, Value, Fate], ...] = (
    ("has_vision_encoder", False, "refused"),
    ("has_audio_encoder", True, "refused"),
    ("has_gen_audio_encoder", True, "refused"),
    ("has_llava_projector", False, "no effect"),
    ("has_text_encoder", False, "no effect"),
    ("has_minicpmv_projector", True, "refused"),
    ("minicpmv_version", 3, "refused"),
    ("minicpmv_query_num", 3, "refused"),
    ("projector_type", "resampler", "refused"),
    ("projector_type", "mlp_norm", "refused"),
    ("use_gelu", True, "obeyed"),
    ("use_silu", True, "obeyed"),
    ("vision.projector_type", "mlp", "no effect"),
    ("vision.image_size", 28, "obeyed"),
    ("vision.patch_size", 13, "refused"),
    ("vision.patch_size", 28, "obeyed"),
    ("vision.embedding_length", 44, "obeyed"),
    ("vision.feed_forward_length", 60, "obeyed"),
    ("vision.feed_forward_length", [72, 72, 72, 72], "no effect"),
    ("vision.block_count", 3, "refused"),  # by the name of a tensor of the block that is left over
    ("vision.projection_dim", 5, "no effect"),
    ("vision.attention.head_count", 2, "obeyed"),
    ("vision.attention.head_count", [4, 4, 4, 4], "no effect"),
    ("vision.attention.head_count_kv", 4, "no effect"),
    ("vision.attention.head_count_kv", 2, "refused"),
    ("vision.attention.head_dim", 10, "no effect"),
    ("vision.attention.head_dim", 8, "refused"),
    ("vision.attention.layer_norm_epsilon", 0.05, "obeyed"),
    ("vision.attention.layer_norm_rms_epsilon", 0.05, "refused"),
    ("vision.image_mean", [0.1, 0.2, 0.3], "obeyed"),
    ("vision.image_mean", [0.5, 0.5, 0.5, 0.5], "refused"),
    ("vision.image_std", [0.9, 0.8, 0.7], "obeyed"),
    ("vision.feature_layer", [2], "obeyed"),
    ("vision.feature_layer", [2, 3], "refused"),
    ("vision.feature_layer", [0], "refused"),
    ("vision.feature_layer", [-2], "refused"),
    ("vision.image_grid_pinpoints", [56, 112, 112, 56], "obeyed"),
    ("vision.image_aspect_ratio", "pad", "no effect"),
    ("vision.image_aspect_ratio", "anyres", "refused"),
    ("vision.image_crop_resolution", 224, "no effect"),
    ("vision.image_split_resolution", 224, "no effect"),
    ("vision.mm_patch_merge_type", "flat", "no effect"),
    ("vision.mm_patch_merge_type", "spatial_unpad", "refused"),
    ("vision.mm_projector_type", "mlp2x_gelu", "no effect"),
    ("vision.mm_projector_type", "linear", "refused"),
    ("vision.image_min_pixels", 100, "refused"),
    ("vision.image_max_pixels", 100, "refused"),
    ("vision.image_resize_algo", 1, "refused"),
    ("vision.preproc_image_size", 28, "refused"),
    ("vision.preproc_min_tiles", 2, "refused"),
    ("vision.preproc_max_tiles", 4, "refused"),
    ("vision.projector.scale_factor", 2, "refused"),
    ("vision.projector.query_side", 2, "refused"),
    ("vision.projector.window_side", 2, "refused"),
    ("vision.projector.spatial_offsets", [1], "refused"),
    ("vision.proj_scale_factor", 2, "refused"),
    ("vision.spatial_merge_size", 2, "refused"),
    ("vision.is_deepstack_layers", [1, 0], "refused"),
    ("vision.n_wa_pattern", 2, "refused"),
    ("vision.wa_layer_indexes", [1], "refused"),
    ("vision.wa_pattern_mode", [1], "refused"),
    ("vision.window_size", 2, "refused"),
    ("vision.swiglu_clamp", 0.1, "refused"),
    ("vision.expert_used_count", 2, "refused"),
    ("vision.sam.block_count", 2, "refused"),
    ("vision.sam.embedding_length", 2, "refused"),
    ("vision.sam.head_count", 2, "refused"),
    ("vision.rope.freq_base", 500.0, "refused"),
    ("audio.embedding_length", 8, "refused"),
)
IDS: tuple[tuple[str, Value, Fate], ...] = (
    ("tokenizer.ggml.model", "bert", "refused"),
    ("tokenizer.ggml.add_bos_token", False, "obeyed"),
    ("tokenizer.ggml.add_sep_token", True, "no effect"),
    ("tokenizer.ggml.add_space_prefix", False, "obeyed"),
    ("tokenizer.ggml.remove_extra_whitespaces", True, "no effect"),
    ("tokenizer.ggml.bos_token_id", 300, "obeyed"),
    ("tokenizer.ggml.bos_token_id", 9999, "no effect"),
    ("tokenizer.ggml.eos_token_id", 300, "no effect"),
    ("tokenizer.ggml.unknown_token_id", 300, "no effect"),
    ("tokenizer.ggml.padding_token_id", 300, "no effect"),
    ("tokenizer.ggml.seperator_token_id", 300, "no effect"),
    ("tokenizer.ggml.cls_token_id", 300, "no effect"),
    ("tokenizer.ggml.mask_token_id", 300, "no effect"),
    ("tokenizer.ggml.eot_token_id", 300, "no effect"),
    ("tokenizer.ggml.eom_token_id", 300, "no effect"),
    *((f"tokenizer.ggml.fim_{name}_token_id", 300, "no effect") for name in ("pre", "suf", "mid", "pad", "rep", "sep")),
    *((f"tokenizer.ggml.{name}_token_id", 300, "no effect") for name in ("prefix", "suffix", "middle")),
    ("tokenizer.ggml.pre", "llama-bpe", "no effect"),
    ("tokenizer.ggml.merges", ["a b"], "no effect"),
    ("tokenizer.ggml.token_type_count", 2, "no effect"),
    ("tokenizer.ggml.precompiled_charsmap", [1, 2], "no effect"),
    ("tokenizer.ggml.suppress_tokens", [300], "no effect"),
    ("tokenizer.ggml.normalizer.lowercase", True, "no effect"),
    ("tokenizer.ggml.normalizer.strip_accents", True, "no effect"),
    ("tokenizer.huggingface.json", "{}", "no effect"),
    ("tokenizer.rwkv.world", "x", "no effect"),
    ("general.name", "another", "no effect"),
    ("general.file_type", 1, "no effect"),
    ("general.quantization_version", 2, "no effect"),
    ("general.sampling.temp", 0.5, "no effect"),
    ("general.sampling.top_k", 3, "no effect"),
)
