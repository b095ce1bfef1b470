"""Load a pair of Qwen2-VL or Qwen2.5-VL into transformers' class of that name, a text file alone into Qwen2ForCausalLM.

Rows of Q and K are in the same order in both; the tower's q, k and v are one matrix in transformers. A text's three
rope positions are one, so Qwen2's own decoder stands for a text file alone. D width, F MLP width, V vocabulary, M width
of four patches.
"""

from typing import Any

import torch
from torch import Tensor

from llava_ref.gguf.file import GGUFFile

from .model import Family, HfModel, refuse, transformers
from .settings import LARGE, VisionSettings, read_tower, whole
from .tensors import TensorReader

IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
GATED = "qwen2.5vl_merger"
PROJECTORS = ("qwen2vl_merger", GATED)
MERGE, FRAMES, WINDOW = 2, 2, 112  # of Qwen2_5_VLVisionConfig, and in no file
State = dict[str, Tensor]


def load_qwen2vl(text: GGUFFile, mmproj: GGUFFile | None) -> HfModel:
    """Load a pair, or a text file alone. Raises ReferenceError for what transformers cannot express."""
    hf, a = transformers(), f"{text.string('general.architecture')}."
    tokens = text.array("tokenizer.ggml.tokens", "string")
    image = tokens.index(IMAGE_PAD) if IMAGE_PAD in tokens else len(tokens)
    config = text_config(text, a)
    if mmproj is None:
        module = _module(hf.Qwen2ForCausalLM, hf.Qwen2Config(**config), text_state(text, config, "model."))
        return _filled(HfModel(module, "qwen2vl", text, len(tokens), image, None))
    vision, gated = read_tower(mmproj), mmproj.string("clip.projector_type", "") == GATED
    tower, vision_state = _gated_tower(mmproj, vision) if gated else _plain_tower(mmproj, vision)
    config["rope_parameters"] |= {"mrope_section": _sections(text, a)}
    name = "Qwen2_5_VL" if gated else "Qwen2VL"
    joined = getattr(hf, f"{name}Config")(
        text_config=config,
        vision_config=tower,
        image_token_id=image,
        video_token_id=tokens.index(VIDEO_PAD) if VIDEO_PAD in tokens else len(tokens) + 1,
        tie_word_embeddings=config["tie_word_embeddings"],
        attn_implementation="eager",
    )
    state = text_state(text, config, "model.language_model.") | vision_state
    module = _module(getattr(hf, f"{name}ForConditionalGeneration"), joined, state)
    family: Family = "qwen2_5_vl" if gated else "qwen2vl"
    return _filled(HfModel(module, family, text, len(tokens), image, vision))


def _module(kind: Any, config: Any, state: State) -> Any:
    with torch.device("meta"):  # random weights would take time and memory
        module = kind(config)
    module.load_state_dict(state, assign=True)
    return module.eval()


def text_config(file: GGUFFile, a: str) -> dict[str, Any]:
    """Return the settings of Qwen2Config, Qwen2VLTextConfig and Qwen2_5_VLTextConfig. Keys: llama-arch.cpp b11549."""
    blocks, width = file.integer(a + "block_count", 1, LARGE), file.integer(a + "embedding_length", 1, LARGE)
    n_head = whole(file, a + "attention.head_count", None, blocks)
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if whole(file, a + key, width // n_head, blocks) != width // n_head:
            raise refuse(file, a + key, "is not the width of a head")
    for key in ("attention.sliding_window", "rope.scaling.type"):
        if a + key in file:
            raise refuse(file, a + key, "is there")
    return {
        "vocab_size": file.array_length("tokenizer.ggml.tokens"),
        "hidden_size": width,
        "intermediate_size": whole(file, a + "feed_forward_length", None, blocks),
        "num_hidden_layers": blocks,
        "num_attention_heads": n_head,
        "num_key_value_heads": whole(file, a + "attention.head_count_kv", n_head, blocks),
        "max_position_embeddings": file.integer(a + "context_length", 1, LARGE),
        "rms_norm_eps": file.number(a + "attention.layer_norm_rms_epsilon", 0.0, 1.0, layers=blocks),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": {"rope_type": "default", "rope_theta": file.number(a + "rope.freq_base", 0.0, 1e15, 1e4)},
        "attn_implementation": "eager",
    }


def _sections(file: GGUFFile, a: str) -> list[int]:
    sections = file.array(a + "rope.dimension_sections", "int")
    if len(sections) > 3 and sections[3]:
        raise refuse(file, a + "rope.dimension_sections", f"{sections} turns by a fourth position")
    return list(sections[:3])


def text_state(file: GGUFFile, c: dict[str, Any], prefix: str) -> State:
    """Return the decoder's weights, by names that begin with `prefix`, and those of the output."""
    w, D, V, F = TensorReader(file), c["hidden_size"], c["vocab_size"], c["intermediate_size"]
    KV = D // c["num_attention_heads"] * c["num_key_value_heads"]
    embedding, output = w.take("token_embd.weight", (V, D)), w.maybe("output.weight", (V, D))
    state = {
        f"{prefix}embed_tokens.weight": embedding,
        "lm_head.weight": embedding if output is None else output,
        f"{prefix}norm.weight": w.take("output_norm.weight", (D,)),
    }
    for i in range(c["num_hidden_layers"]):
        name, to = f"blk.{i}", f"{prefix}layers.{i}"
        state[f"{to}.input_layernorm.weight"] = w.take(f"{name}.attn_norm.weight", (D,))
        state[f"{to}.post_attention_layernorm.weight"] = w.take(f"{name}.ffn_norm.weight", (D,))
        for part, rows in (("q", D), ("k", KV), ("v", KV)):
            state |= w.affine(f"{name}.attn_{part}", f"{to}.self_attn.{part}_proj", (rows, D))
        state[f"{to}.self_attn.o_proj.weight"] = w.take(f"{name}.attn_output.weight", (D, D))
        for part, shape in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
            state[f"{to}.mlp.{part}_proj.weight"] = w.take(f"{name}.ffn_{part}.weight", shape)
    w.finish()
    return state


def _gated_tower(file: GGUFFile, v: VisionSettings) -> tuple[dict[str, Any], State]:
    """Return the config and the weights of Qwen2.5-VL's tower."""
    w, D, F = TensorReader(file), v.config["hidden_size"], v.config["intermediate_size"]
    blocks = v.n_stored
    pattern = file.integer("clip.vision.n_wa_pattern", 1, LARGE)
    state, out = _around(w, v, biased=False)
    for i in range(blocks):
        name, to = f"v.blk.{i}", f"model.visual.blocks.{i}"
        state |= _attention(w, name, to, D)
        for n in "12":
            state[f"{to}.norm{n}.weight"] = w.take(f"{name}.ln{n}.weight", (D,))
        for part, shape in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
            state |= w.affine(f"{name}.ffn_{part}", f"{to}.mlp.{part}_proj", shape)
    w.finish()
    config = {
        **_shape(v),
        "hidden_size": D,
        "hidden_act": v.config["hidden_act"],
        "intermediate_size": F,
        "out_hidden_size": out,
        "window_size": WINDOW,
        "fullatt_block_indexes": [i for i in range(blocks) if (i + 1) % pattern == 0],
    }
    return config, state


def _plain_tower(file: GGUFFile, v: VisionSettings) -> tuple[dict[str, Any], State]:
    """Return the config and the weights of Qwen2-VL's tower. The file's MLP width is not the tower's."""
    w, D = TensorReader(file), v.config["hidden_size"]
    rows, columns = w.shape("v.blk.0.ffn_up.weight")
    F, up, down = (rows, "ffn_up", "ffn_down") if columns == D else (columns, "ffn_down", "ffn_up")
    if F % D:
        raise refuse(file, f"v.blk.0.{up}.weight", f"{F} rows are no multiple of the width")
    state, out = _around(w, v, biased=True)
    for i in range(v.n_stored):
        name, to = f"v.blk.{i}", f"model.visual.blocks.{i}"
        state |= _attention(w, name, to, D)
        state |= w.affine(f"{name}.ln1", f"{to}.norm1", (D,)) | w.affine(f"{name}.ln2", f"{to}.norm2", (D,))
        state |= w.affine(f"{name}.{up}", f"{to}.mlp.fc1", (F, D)) | w.affine(f"{name}.{down}", f"{to}.mlp.fc2", (D, F))
    w.finish()
    act = v.config["hidden_act"]
    return {**_shape(v), "embed_dim": D, "hidden_size": out, "hidden_act": act, "mlp_ratio": F // D}, state


def _shape(v: VisionSettings) -> dict[str, Any]:
    return {
        "depth": v.n_stored,
        "num_heads": v.config["num_attention_heads"],
        "patch_size": v.config["patch_size"],
        "spatial_merge_size": MERGE,
        "temporal_patch_size": FRAMES,
    }


def _around(w: TensorReader, v: VisionSettings, *, biased: bool) -> tuple[State, int]:
    """Return the patch kernel and the merger, and how wide its rows are."""
    D, P = v.config["hidden_size"], v.config["patch_size"]
    M, (out, _) = MERGE**2 * D, w.shape("mm.2.weight")
    frames = [w.take(name, (D, 3, P, P)) for name in ("v.patch_embd.weight", "v.patch_embd.weight.1")]
    merger = "model.visual.merger"
    state = {"model.visual.patch_embed.proj.weight": torch.stack(frames, dim=2)}  # (D, 3, frame, P, P)
    state |= {f"{merger}.ln_q.weight": w.take("v.post_ln.weight", (D,))}
    state |= {f"{merger}.ln_q.bias": w.take("v.post_ln.bias", (D,))} if biased else {}
    state |= w.affine("mm.0", f"{merger}.mlp.0", (M, M)) | w.affine("mm.2", f"{merger}.mlp.2", (out, M))
    return state, out


def _attention(w: TensorReader, name: str, to: str, D: int) -> State:
    parts = [w.affine(f"{name}.attn_{part}", f"{to}.attn.qkv", (D, D)) for part in "qkv"]
    state = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return state | w.affine(f"{name}.attn_out", f"{to}.attn.proj", (D, D))


def _filled(model: HfModel) -> HfModel:
    """Compute the buffers that are not stored, and set the tower's epsilon, which is 1e-6 in the classes."""
    model.decoder.rotary_emb = type(model.decoder.rotary_emb)(model.decoder.config)
    if model.vision is not None:
        visual = model.module.model.visual
        visual.rotary_pos_emb = type(visual.rotary_pos_emb)(visual.config)
        for norm in (visual.merger.ln_q, *(norm for block in visual.blocks for norm in (block.norm1, block.norm2))):
            norm.eps = norm.variance_epsilon = model.vision.config["layer_norm_eps"]
    for name, buffer in [*model.module.named_buffers(), *model.module.named_parameters()]:
        assert not buffer.is_meta, f"{name} was never filled"
    return model
