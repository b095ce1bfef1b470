"""Ask other engines that are installed the same: a token behind a context, at the same sizes, with random weights."""

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from .questions import Card, Question
from .sizes import Sizes
from .timing import Row, answered

TOKENS = 64


def transformers(card: Card) -> Iterator[Row]:
    """Ask transformers' llama, as it comes, and with a compiled step over a static cache."""
    model = _transformers_model(card)
    for name, implementation in ("dynamic cache", "dynamic"), ("static cache, compiled", "static"):
        yield answered("transformers", name, partial(_generate, card, model, name, implementation))


def _transformers_model(card: Card) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    s = card.sizes
    config = LlamaConfig(
        hidden_size=s.width, intermediate_size=s.mlp, num_attention_heads=s.heads, num_key_value_heads=s.heads,
        num_hidden_layers=s.layers, vocab_size=s.vocabulary, max_position_embeddings=4096, head_dim=s.head_size,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(card.device):
            return LlamaForCausalLM(config).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def _generate(card: Card, model: Any, name: str, implementation: str) -> Row:
    """Return the time of a token: that of an answer of many, less that of one of a single token."""
    ids = torch.ones((1, card.sizes.context), dtype=torch.int64, device=card.device)
    mask = torch.ones_like(ids)

    def run(n: int) -> None:
        model.generate(
            ids, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False,
            cache_implementation=implementation,
        )  # fmt: skip

    with torch.inference_mode():
        short, long = (card.timer.wall(partial(run, n), 3) for n in (1, 1 + TOKENS))
    n_bytes = decode_bytes(card.sizes, 2)
    return Row("transformers", f"bfloat16, {name}", max(0.0, long - short) / TOKENS, n_bytes, n_tokens=1)


def decode_bytes(s: Sizes, weight: float) -> int:
    """Return the bytes that a token reads: the weights at so many bytes each, and float16 keys and values."""
    weights = s.layers * (4 * s.width * s.heads * s.head_size + 3 * s.width * s.mlp) + s.vocabulary * s.width
    return int(weight * weights) + 2 * s.layers * s.context * s.heads * s.head_size * 2


def vllm(card: Card) -> Iterator[Row]:
    """Ask vLLM with dummy weights of the same sizes."""
    yield answered("vllm", "bfloat16", partial(_vllm, card))


def _vllm(card: Card) -> Row:
    import json
    import tempfile
    from pathlib import Path

    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    s = card.sizes
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": s.width, "torch_dtype": "bfloat16",
        "intermediate_size": s.mlp, "num_attention_heads": s.heads, "num_key_value_heads": s.heads,
        "head_dim": s.head_size, "num_hidden_layers": s.layers, "vocab_size": s.vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        model = LLM(
            model=folder, load_format="dummy", skip_tokenizer_init=True, max_model_len=2048,
            gpu_memory_utilization=0.8, enable_prefix_caching=False,
        )  # fmt: skip
        prompt = {"prompt_token_ids": [1] * s.context}

        def run(n: int) -> None:
            limits = SamplingParams(temperature=0, max_tokens=n, min_tokens=n, ignore_eos=True, detokenize=False)
            model.generate([prompt], limits, use_tqdm=False)

        short, long = (card.timer.wall(partial(run, n), 3) for n in (1, 1 + TOKENS))
    return Row("vllm", "bfloat16", max(0.0, long - short) / TOKENS, decode_bytes(s, 2), n_tokens=1)


_ALL: dict[str, Question] = {"transformers": transformers, "vllm": vllm}
QUESTIONS = {name: question for name, question in _ALL.items() if find_spec(name) is not None}
"""Those that are installed."""
