"""Weights of odd types and shapes: read where they can mean one thing only, refused by name where not."""

import numpy as np
import pytest

from llava_ref import gguf, load
from llava_ref.profiles import Quirks
from llava_ref.tools.check import check
from llava_ref.tools.facts import meaning

from ..support.rewriting import changed
from ..support.tiny_pair import VICUNA, Tiny, write_pair

HALVES = ("text model", "vision tower")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), Tiny(template=VICUNA, feature_layer=2))


@pytest.fixture
def with_tensor(pair, tmp_path):
    """The pair with one tensor made anew by a function of the old one."""

    def make(half, name, function):
        path = changed(pair[half], tmp_path / "changed.gguf", lambda keys, t: t.update({name: function(t[name])}))
        return tuple(path if i == half else pair[i] for i in (0, 1))

    return make


def problem(files, half):
    """What `check` says against one file of a pair, or None."""
    finding = next(f for f in check(*map(gguf.read, files)) if f.what == HALVES[half])
    return None if finding.ok else finding.says


def logits(files):
    rgb = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    model = load(*files, backend="numpy", threads=1)
    return model.forward([[1, 5], model.encode_image(rgb), [7, 300]])


NAMES = [
    *((0, name) for name in ("token_embd.weight", "output.weight", "output_norm.weight", "blk.1.ffn_norm.weight")),
    *((0, name) for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight")),
    *((1, name) for name in ("v.class_embd", "v.position_embd.weight", "v.patch_embd.weight", "v.pre_ln.bias")),
    *((1, name) for name in ("v.blk.0.attn_k.weight", "v.blk.1.ffn_up.bias", "v.blk.0.ffn_down.weight")),
    *((1, name) for name in ("mm.0.weight", "mm.2.weight", "mm.2.bias")),
]


@pytest.mark.parametrize("half, name", NAMES)
def test_integers_are_no_weights(with_tensor, half, name):
    """Whatever they are for: what would be multiplied, added, looked up or scaled by them is not the model."""
    files = with_tensor(half, name, lambda x: x.astype(np.int8))
    assert problem(files, half) == f"{name}: is of the integer type I8, expected floats or blocks"


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.int64])
def test_nor_are_wider_integers(with_tensor, kind):
    files = with_tensor(0, "blk.0.attn_q.weight", lambda x: x.astype(kind))
    name = np.dtype(kind).name.replace("int", "I")
    assert problem(files, 0) == f"blk.0.attn_q.weight: is of the integer type {name}, expected floats or blocks"


def test_integer_divisors_of_rope_are_refused(pair, tmp_path):
    def add(keys, tensors):
        tensors["rope_freqs.weight"] = np.ones(4, np.int32)

    files = (changed(pair[0], tmp_path / "changed.gguf", add), pair[1])
    assert problem(files, 0).startswith("rope_freqs.weight: is of the integer type I32")


@pytest.mark.parametrize("half, name", [(half, name) for half, name in NAMES if name != "v.patch_embd.weight"])
def test_float64_is_float32_rounded_once(pair, with_tensor, half, name):
    files = with_tensor(half, name, lambda x: x.astype(np.float64) * (1 + 1e-12))
    assert problem(files, half) is None and (logits(files) == logits(pair)).all()


@pytest.mark.parametrize("half, name", [(half, name) for half, name in NAMES if name != "v.patch_embd.weight"])
@pytest.mark.parametrize("place", ["before", "behind", "both"])
def test_axes_of_one_are_nothing(pair, with_tensor, half, name, place):
    """(1, D) for (D,), a matrix as a 1 x 1 convolution: the same pair, the same answer."""
    shapes = {"before": lambda s: (1, *s), "behind": lambda s: (*s, 1, 1), "both": lambda s: (1, *s, 1)}
    files = with_tensor(half, name, lambda x: x.reshape(shapes[place](x.shape)))
    assert problem(files, half) is None and (logits(files) == logits(pair)).all()
    assert all(finding.ok for finding in check(*map(gguf.read, files)))


def test_divisors_of_rope_with_an_axis_of_one(pair, tmp_path):
    def stretched(shape):
        def add(keys, tensors):
            tensors["rope_freqs.weight"] = np.arange(1, 5, dtype=np.float32).reshape(shape)

        return logits((changed(pair[0], tmp_path / "changed.gguf", add), pair[1]))

    plain = stretched((4,))
    assert (plain == stretched((1, 4))).all() and (plain == stretched((4, 1))).all() and (plain != logits(pair)).any()


@pytest.mark.parametrize(
    "name, shape", [("blk.0.attn_q.weight", (2, 16, 32)), ("output_norm.weight", (4, 8)), ("blk.0.ffn_up.weight", None)]
)
def test_other_axes_are_refused(with_tensor, name, shape):
    """The same numbers by another shape, and a matrix turned round."""
    files = with_tensor(0, name, lambda x: x.reshape(shape or x.shape[::-1]))
    assert problem(files, 0).startswith(f"{name}: has shape")


@pytest.mark.parametrize("shape", [(), (0,), (0, 32)])
@pytest.mark.parametrize("name", ["mm.2.weight", "v.class_embd", "v.blk.0.attn_q.weight"])
def test_an_empty_or_scalar_weight_is_refused(with_tensor, name, shape):
    files = with_tensor(1, name, lambda x: np.zeros(shape, np.float32))
    assert problem(files, 1).startswith(f"{name}: has shape {list(shape)}")
    assert "image_pipeline" in meaning(gguf.read(files[1]), Quirks())[0]
