"""The bytes of a token are those of the file, less the rows of the embedding that nobody asks for."""

import pytest

import llava_ref
from llava_ref import gguf
from llava_ref.benchmark.floor import bytes_of_token
from llava_ref.conformance.pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3
from llava_ref.loading import embedded

from ..support.tiny_pair import Tiny, write_text


def floor(path, position):
    return bytes_of_token(llava_ref.load(path, backend="numpy").text.step_plan(), position)


def stored(path):
    return {name: len(view.data) for name, view in gguf.read(path).tensors.items()}


@pytest.mark.parametrize("tied", [False, True])
def test_weights_count_once(tmp_path, tied):
    path = write_text(tmp_path / "text.gguf", Tiny(tied=tied))
    sizes = stored(path)
    n_vocab = gguf.read(path).tensors["token_embd.weight"].shape[0]
    row = sizes["token_embd.weight"] // n_vocab
    others = sum(sizes.values()) - (0 if tied else sizes["token_embd.weight"])
    assert floor(path, 0) == others + row


def test_the_embedded_model_s():
    path, _ = embedded()
    sizes = stored(path)
    weights = sum(sizes.values()) - sizes["token_embd.weight"] + sizes["token_embd.weight"] // 768
    assert floor(path, 0) == weights
    assert floor(path, 100) - floor(path, 0) == 100 * 4 * 2 * 64 * 2, "4 layers, keys and values, 64 numbers, float16"


def test_a_window_bounds_what_is_read_and_every_norm_counts(tmp_path):
    """Six of seven layers look back 7 positions, and one sees everything. The embedding is the output too."""
    spec = Gemma3Spec()
    text = build_gemma3(tmp_path, spec, SiglipSpec()).text
    sizes = stored(text)
    row = sizes["token_embd.weight"] // gguf.read(text).tensors["token_embd.weight"].shape[0]
    cached = 2 * spec.n_head_kv * spec.head_size * 2
    assert floor(text, 0) == sum(sizes.values()) + row
    assert floor(text, 5) - floor(text, 0) == 7 * 5 * cached
    assert floor(text, 100) - floor(text, 0) == (6 * 7 + 100) * cached
