"""MobileVLM's projectors against torch's own convolutions, hard-swish and pooling, for any number of patches."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llava_ref import gguf
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec, build
from llava_ref.models import mobilevlm
from llava_ref.models.weights import Weights
from llava_ref.ops import get_ops
from llava_ref.ops.numpy_quants import dequantize

from ..support.helpers import close, rand

WIDTH, EPS = 40, 1e-5


@pytest.fixture(params=["numpy", "torch"])
def ops(request):
    return get_ops(request.param, "cpu", 1, 0)


@pytest.fixture(params=[4, 10])
def n(request):
    return request.param


def projector(folder, mobile):
    """Return the tensors of a random pair's projector: to take from, and as torch's in float64."""
    file = gguf.read(build(folder, TextSpec(n_layer=1), VisionSpec(mobile=mobile, n_block=1)).mmproj)
    numbers = {name: torch.from_numpy(dequantize(view).astype(np.float64)) for name, view in file.tensors.items()}
    return file, {name.removeprefix("mm.model."): x for name, x in numbers.items() if name.startswith("mm.model.")}


def linear(x, t, name):
    return F.linear(x, t[f"{name}.weight"], t.get(f"{name}.bias"))


def norm(x, t, name):
    """Norm the channels of x (1, D, y, x)."""
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], t[f"{name}.weight"], t[f"{name}.bias"], EPS).permute(
        0, 3, 1, 2
    )


def as_picture(rows, n):
    return rows.T.reshape(1, -1, n, n)


def block(x, t, name, stride):
    """torchvision's InvertedResidual, as MobileVLM's vision_projector.py sets it up, without its residual."""
    h = F.conv2d(x, t[f"{name}.0.0.weight"], stride=stride, padding=1, groups=x.shape[1])
    h = F.hardswish(norm(h, t, f"{name}.0.1"))
    average = F.adaptive_avg_pool2d(h, 1)[:, :, 0, 0]
    gates = F.hardsigmoid(linear(F.relu(linear(average, t, f"{name}.1.fc1")), t, f"{name}.1.fc2"))
    h = F.conv2d(h * gates[..., None, None], t[f"{name}.2.0.weight"][..., None, None])
    return norm(h, t, f"{name}.2.1")


def test_ldp_is_two_inverted_residuals(tmp_path, ops, n):
    file, t = projector(tmp_path, "ldp")
    x = rand(n * n, WIDTH)
    h = linear(F.gelu(linear(torch.from_numpy(x).double(), t, "mlp.1")), t, "mlp.3")
    h = as_picture(h, n)
    h = h + block(h, t, "mb_block.1.block", 1)
    want = block(h, t, "mb_block.2.block", 2)[0].flatten(1).T
    w = mobilevlm.load_ldp(Weights(file, ops), WIDTH)
    ours = mobilevlm.ldp(ops.array(x), w, "gelu_erf", EPS, n, ops)
    close(ops.numpy(ours), want.numpy(), 2e-5)


def test_ldpv2_is_an_average_and_a_convolution(tmp_path, ops, n):
    file, t = projector(tmp_path, "ldpv2")
    x = rand(n * n, WIDTH)
    h = linear(F.gelu(linear(torch.from_numpy(x).double(), t, "mlp.0")), t, "mlp.2")
    h = F.avg_pool2d(as_picture(h, n), 2)
    h = h + F.conv2d(h, t["peg.0.weight"], t["peg.0.bias"], padding=1, groups=h.shape[1])
    w = mobilevlm.load_peg(Weights(file, ops), WIDTH)
    close(ops.numpy(mobilevlm.peg(ops.array(x), w, "gelu_erf", n, ops)), h[0].flatten(1).T.numpy(), 2e-5)


def test_every_other_place_begins_at_the_first():
    assert mobilevlm.neighbours(4, 2)[4].tolist() == [0, 2, 8, 10]
    assert mobilevlm.neighbours(4, 2)[0].tolist() == [-1, -1, -1, 5]
    assert np.array_equal(mobilevlm.neighbours(3)[4], np.arange(9))
