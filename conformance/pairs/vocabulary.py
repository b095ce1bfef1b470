"""Make a small SPM vocabulary: bytes, letters and a few words."""

from .writing import Metadata

WORDS = "the a is what color how many shape red blue circle square of in to and picture large small left right".split()


def vocabulary(words: tuple[str, ...] | None = None) -> Metadata:
    """Make a small SPM vocabulary: unknown, BOS, EOS, the 256 bytes, letters, and whole words with their prefixes."""
    ascii_letters = [chr(c) for c in range(33, 127)]
    letters = [*(ascii_letters if words is None else sorted({*"".join(words)})), "▁"]
    merged = {("▁" + word)[:n] for word in (WORDS if words is None else words) for n in range(2, len(word) + 2)}
    pieces = sorted(merged, key=lambda piece: (len(piece), piece))
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *byte_tokens, *letters, *pieces]
    scores = [0.0] * 259 + [-1000.0 - i for i in range(len(letters))] + [-1.0 - i for i in range(len(pieces))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(letters) + len(pieces)),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


def n_vocab(words: tuple[str, ...] | None = None) -> int:
    """Count the tokens of `vocabulary(words)`."""
    return size_of(vocabulary(words))


def size_of(vocabulary: Metadata) -> int:
    """Count the tokens of a vocabulary."""
    tokens = vocabulary["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    return len(tokens)
