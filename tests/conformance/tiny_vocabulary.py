"""A tokenizer.json of a few tokens, as transformers writes one for Llama."""

from typing import Any

MERGES = [("▁", "a"), ("b", "c"), ("▁a", "bc"), ("▁", "▁"), ("c", "c"), ("▁", "b")]
LETTERS = ["▁", "a", "b", "c"]
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def fast_tokenizer(added: list[tuple[str, bool]]) -> dict[str, Any]:
    """Make a tokenizer.json as transformers writes one for Llama, with tokens added at the end."""
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *LETTERS, *[a + b for a, b in MERGES]]
    special = [{"id": i, "content": tokens[i], "special": True} for i in range(3)]
    more = [{"id": len(tokens) + i, "content": text, "special": s} for i, (text, s) in enumerate(added)]
    model = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "merges": [list(m) for m in MERGES]}
    model["vocab"] = {token: i for i, token in enumerate(tokens)}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}
    return {"added_tokens": special + more, "model": model, "normalizer": normalizer, "pre_tokenizer": None}


N_BASE = 3 + 256 + len(LETTERS) + len(MERGES)
