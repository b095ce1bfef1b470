"""Load a pair of arch `mllama` into transformers' MllamaForConditionalGeneration, a text file alone into
MllamaForCausalLM.

Gates of norms and tiles are stored as their tanh, or 1 less that, and transformers takes the tanh itself. D width, F
MLP width, V vocabulary, K tiles at most, L rows of a tile.
"""

from typing import Any

import torch
from torch import Tensor

from llava_ref.gguf.file import GGUFFile

from ..reference import ReferenceError
from .llava import fill_decoder, text_block
from .model import HfModel, transformers
from .settings import LARGE, TextSettings, VisionSettings, read_text, whole
from .tensors import TensorReader

PICTURE, KEY = "<|image|>", "mllama.vision."
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # preprocessor_config.json
NEW_ROWS = 8  # of the embedding, for tokens that cannot be said
State = dict[str, Tensor]


def load_mllama(text: GGUFFile, mmproj: GGUFFile | None) -> HfModel:
    """Load a pair, or a text file alone. Raises ReferenceError for what transformers cannot express."""
    hf, c = transformers(), read_text(text, "mllama")
    tokens = text.array("tokenizer.ggml.tokens", "string")
    if PICTURE not in tokens:
        raise ReferenceError(text.path, "tokenizer.ggml.tokens", f"has no {PICTURE}, the processor's image token")
    config, state, divisors = _text(text, c)
    if mmproj is None:
        vision, module = None, _module(hf.MllamaForCausalLM, config, _named(state, "model."))
    else:
        vision = read_settings(mmproj, config.hidden_size)
        tower = hf.MllamaVisionConfig(**vision.config)
        joined = hf.MllamaConfig(
            vision_config=tower,
            text_config=config,
            image_token_index=tokens.index(PICTURE),
            attn_implementation="eager",
        )
        state = _named(state, "model.language_model.") | _vision(mmproj, tower, config.hidden_size)
        module = _module(hf.MllamaForConditionalGeneration, joined, state)
    model = HfModel(module, "mllama", text, config.vocab_size, tokens.index(PICTURE), vision)
    fill_decoder(model, c, divisors)
    return model


def _module(kind: Any, config: Any, state: State) -> Any:
    with torch.device("meta"):  # random weights would take time and memory
        module = kind(config)
    module.load_state_dict(state, assign=True)
    return module.eval()


def _named(state: State, prefix: str) -> State:
    return {name if name.startswith("lm_head.") else prefix + name: tensor for name, tensor in state.items()}


def _text(file: GGUFFile, c: TextSettings) -> tuple[Any, State, Tensor | None]:
    """Return config, weights without a prefix, and the divisors of rotary frequencies."""
    w, D = TensorReader(file), c.config["hidden_size"]
    looks, V = file.array("mllama.attention.cross_attention_layers", "int"), w.shape("output.weight")[0]
    known = ("is_causal", "attn_implementation", "head_dim")
    config = transformers().MllamaTextConfig(
        **{key: value for key, value in c.config.items() if key not in known},
        vocab_size=V, cross_attention_layers=looks, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        attn_implementation="eager",
    )  # fmt: skip
    config.head_dim = D // config.num_attention_heads
    state = {
        "embed_tokens.weight": w.take("token_embd.weight", (V + NEW_ROWS, D)),
        "norm.weight": w.take("output_norm.weight", (D,)),
        "lm_head.weight": w.take("output.weight", (V, D)),
    }
    for i in range(config.num_hidden_layers):
        name, to = f"blk.{i}", f"layers.{i}"
        state |= _look(w, name, to, config) if i in looks else text_block(w, name, to, config, [False, False])
    divisors = w.maybe("rope_freqs.weight", (config.head_dim // 2,))
    w.finish(("v.", "mm."))
    return config, state, divisors


def _look(w: TensorReader, name: str, to: str, c: Any) -> State:
    D, F, KV = c.hidden_size, c.intermediate_size, c.num_key_value_heads * c.head_dim
    shapes = {"q_proj": (D, D), "k_proj": (KV, D), "v_proj": (KV, D), "o_proj": (D, D)}
    state = {f"{to}.cross_attn.{part}.weight": w.take(f"{name}.cross_attn_{part}.weight", shape)
             for part, shape in shapes.items()}  # fmt: skip
    for part in ("q_norm", "k_norm"):
        state[f"{to}.cross_attn.{part}.weight"] = w.take(f"{name}.cross_attn_{part}.weight", (c.head_dim,))
    for part in ("attn_gate", "mlp_gate"):
        state[f"{to}.cross_attn_{part}"] = w.take(f"{name}.cross_attn_{part}", (1,))
    for part, shape in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
        state[f"{to}.mlp.{part}_proj.weight"] = w.take(f"{name}.ffn_{part}.weight", shape)
    state[f"{to}.input_layernorm.weight"] = w.take(f"{name}.attn_norm.weight", (D,))
    return state | {f"{to}.post_attention_layernorm.weight": w.take(f"{name}.ffn_norm.weight", (D,))}


def read_settings(file: GGUFFile, width: int) -> VisionSettings:
    blocks, most = file.integer(KEY + "block_count", 1, LARGE), file.integer(KEY + "max_num_tiles", 1, 64)
    taken, D = file.array(KEY + "intermediate_layers_indices", "int"), file.integer(KEY + "embedding_length", 1, LARGE)
    sides = range(1, most + 1)
    config = {
        "hidden_size": D,
        "num_hidden_layers": blocks,
        "num_global_layers": file.integer(KEY + "global.block_count", 0, LARGE),
        "attention_heads": whole(file, KEY + "attention.head_count", None, blocks),
        "intermediate_size": whole(file, KEY + "feed_forward_length", None, blocks),
        "vision_output_dim": (1 + len(taken)) * D,
        "image_size": file.integer(KEY + "image_size", 1, LARGE),
        "patch_size": file.integer(KEY + "patch_size", 1, LARGE),
        "norm_eps": file.number(KEY + "attention.layer_norm_epsilon", 0.0, 1.0, layers=blocks),
        "max_num_tiles": most,
        "intermediate_layers_indices": taken,
        "supported_aspect_ratios": [[rows, columns] for rows in sides for columns in sides if rows * columns <= most],
    }
    return VisionSettings(config, blocks, *CLIP)


def _vision(file: GGUFFile, c: Any, width: int) -> State:
    w, v, D, K = TensorReader(file), "model.vision_model", c.hidden_size, c.max_num_tiles
    L, grids = (c.image_size // c.patch_size) ** 2 + 1, len(c.supported_aspect_ratios) + 1
    gate = w.take("v.tile_position_embd.gate", (1,))
    given = w.take("v.position_embd.gate", (1,))
    if not torch.allclose(given, 1 - gate, atol=1e-6):
        problem = f"{given.item():.6g}, and that of tiles {gate.item():.6g}: transformers has one gate for both"
        raise ReferenceError(file.path, "v.position_embd.gate", problem)
    state = {
        f"{v}.class_embedding": w.take("v.class_embd", (D,)),
        f"{v}.patch_embedding.weight": w.take("v.patch_embd.weight", (D, 3, c.patch_size, c.patch_size)),
        f"{v}.gated_positional_embedding.gate": gate.atanh(),
        f"{v}.gated_positional_embedding.embedding": w.take("v.position_embd.weight", (L, D)),
        f"{v}.gated_positional_embedding.tile_embedding.weight": w.take(
            "v.tile_position_embd.weight", (grids, K * L * D)),
        **w.affine("mm.0", "model.multi_modal_projector", (width, c.vision_output_dim)),
    }  # fmt: skip
    for place in ("pre", "post"):
        to, name = f"{v}.{place}_tile_positional_embedding", f"v.{place}_tile_position_embd"
        state[f"{to}.embedding.weight"] = w.take(f"{name}.weight", (grids, K * D))
        state[f"{to}.gate"] = w.take(f"{name}.gate", (1,)).atanh()
        state |= w.affine(f"v.{place}_ln", f"{v}.layernorm_{place}", (D,))
    for i in range(c.num_hidden_layers):
        state |= _tower_block(w, f"v.blk.{i}", f"{v}.transformer.layers.{i}", D, c.intermediate_size)
    for i in range(c.num_global_layers):
        name, to = f"v.global.blk.{i}", f"{v}.global_transformer.layers.{i}"
        state |= _tower_block(w, name, to, D, c.intermediate_size)
        state[f"{to}.gate_attn"] = w.take(f"{name}.attn_gate", (1,)).atanh()
        state[f"{to}.gate_ffn"] = w.take(f"{name}.ffn_gate", (1,)).atanh()
    w.finish(("blk.", "token_embd.", "output", "rope_freqs."))
    return state


def _tower_block(w: TensorReader, name: str, to: str, D: int, F: int) -> State:
    swapped = w.shape(f"{name}.ffn_down.weight") == (F, D)  # as Ollama's first releases named them
    up, down = ("ffn_down", "ffn_up") if swapped else ("ffn_up", "ffn_down")
    ln1, ln2, out = (
        ("ln1", "ln2", "attn_out") if w.has(f"{name}.ln1.weight") else ("attn_norm", "ffn_norm", "attn_output")
    )
    return {
        **{f"{to}.self_attn.{part}_proj.weight": w.take(f"{name}.attn_{part}.weight", (D, D)) for part in "qkv"},
        f"{to}.self_attn.o_proj.weight": w.take(f"{name}.{out}.weight", (D, D)),
        **w.affine(f"{name}.{ln1}", f"{to}.input_layernorm", (D,)),
        **w.affine(f"{name}.{ln2}", f"{to}.post_attention_layernorm", (D,)),
        **w.affine(f"{name}.{up}", f"{to}.mlp.fc1", (F, D)),
        **w.affine(f"{name}.{down}", f"{to}.mlp.fc2", (D, F)),
    }
