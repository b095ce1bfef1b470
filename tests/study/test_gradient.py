"""Gradients: finite differences in float64 through every family, transformers' autograd, and every refusal."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import llava_ref
from llava_ref import loading
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3
from llava_ref.conformance.pairs.idefics3 import Idefics3Spec, build_idefics3
from llava_ref.conformance.pairs.internvl import InternVLSpec, build_internvl
from llava_ref.conformance.pairs.mllama import MllamaTextSpec, MllamaVisionSpec, build_mllama
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec, build
from llava_ref.conformance.pairs.pixtral import PixtralSpec, build_pixtral
from llava_ref.conformance.pairs.qwen2vl import QwenTextSpec, QwenVisionSpec, build_qwen2vl
from llava_ref.errors import ParameterError
from llava_ref.ops.torch_ops import TorchOps
from llava_ref.ops.weight_budget import Dequantised
from llava_ref.study.gradient import gradients

from ..support.tiny_pair import Tiny, write_pair

RGB = np.random.default_rng(0).integers(0, 256, (30, 47, 3), np.uint8)
TEXT, TOWER = TextSpec(n_layer=2), VisionSpec(n_block=2)
FAMILIES = {
    "llava": lambda folder: build(folder, replace(TEXT, kind="Q4_0", width=64, mlp_width=96), TOWER),
    "yi-vl": lambda folder: build(folder, TEXT, replace(TOWER, norms=True)),
    "mobilevlm": lambda folder: build(folder, TEXT, replace(TOWER, mobile="ldp")),
    "mobilevlm-v2": lambda folder: build(folder, TEXT, replace(TOWER, mobile="ldpv2")),
    "llava-1.6": lambda folder: build(folder, TEXT, replace(TOWER, sizes=((56, 112), (112, 56)))),
    "gemma3": lambda folder: build_gemma3(folder, Gemma3Spec(n_layer=2), SiglipSpec(n_block=2)),
    "smolvlm": lambda folder: build_idefics3(folder, TEXT, Idefics3Spec(n_block=2)),
    "qwen2-vl": lambda folder: build_qwen2vl(folder, QwenTextSpec(n_layer=2), QwenVisionSpec(n_block=2, gated=False)),
    "qwen2.5-vl": lambda folder: build_qwen2vl(folder, QwenTextSpec(n_layer=2), QwenVisionSpec(n_block=2)),
    "internvl": lambda folder: build_internvl(folder, QwenTextSpec(n_layer=2, sections=()), InternVLSpec(n_block=2)),
    "pixtral": lambda folder: build_pixtral(folder, TEXT, PixtralSpec(n_block=2)),
    "mistral-small-3.1": lambda folder: build_pixtral(folder, TEXT, PixtralSpec(n_block=2, merge=2)),
    "llama-3.2-vision": lambda folder: build_mllama(
        folder, MllamaTextSpec(n_layer=2, looks=(1,)), MllamaVisionSpec(n_block=2, taken=(0,), n_global=1)
    ),
}
STAGES = ("vision.pixels", "vision.features", "projector.out", "embd", "blk.0.kqv_out", "blk.*.out", "blk.1.Kcur")


class Float64Ops(TorchOps):
    """Torch's operations in float64, so that a finite difference has ten digits and not three."""

    def vector(self, view):
        return super().vector(view).double()

    def array(self, x):
        return x if isinstance(x, torch.Tensor) else torch.tensor(np.ascontiguousarray(x), dtype=torch.float64)

    def matrix(self, view):
        plain = super().matrix(view)
        rows, product = (lambda _, ids: plain.rows(ids).double()), (lambda x, w: x @ w.T)
        return Dequantised(view, lambda _: plain.array().double(), rows, product, self._budget)

    def cache(self, *sizes):
        cache = super().cache(*sizes)
        cache._zeros = lambda shape: torch.zeros(shape, dtype=torch.float64)
        cache._keys, cache._values = ([x.double() for x in kept] for kept in (cache._keys, cache._values))
        return cache


def of(logits):
    """A number that every position matters to."""
    return torch.log_softmax(logits[-1], -1)[7] + 0.1 * logits[2, 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gradient_is_what_a_small_step_changes(family, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "operations", lambda *_: Float64Ops("cpu", 1, 1 << 30))
    pair = FAMILIES[family](tmp_path)
    model = llava_ref.load(pair.text, pair.mmproj)
    request = model.raw_request("the <image> is red", [RGB])
    names = [name for name in STAGES if "*" in name or name in model.stages()]
    found, rng = gradients(model, request, of, names), np.random.default_rng(1)
    assert found.arrays["embd"].dtype == np.float64 and found.gradients.keys() == found.arrays.keys()
    assert {"vision.pixels", "projector.out", "blk.0.out", "blk.1.out"} <= found.arrays.keys()
    for name, gradient in found.gradients.items():
        direction = torch.from_numpy(rng.standard_normal(gradient.shape))

        def number(step, name=name, direction=direction):
            def moved(x, at):
                return x + step * direction if at.numbered == name else x

            with model.intervene({name.partition("#")[0]: moved}):
                return of(torch.from_numpy(model.request_logits(request))).item()

        steps = (number(1e-5) - number(-1e-5)) / 2e-5
        slope = float((gradient * direction.numpy()).sum())
        assert slope != 0 and abs(steps - slope) <= 1e-6 * (abs(slope) + np.abs(gradient).max()), (name, steps, slope)
    assert found.value == pytest.approx(number(0), rel=1e-12)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), Tiny(type="Q8_0"))


@pytest.fixture(scope="module")
def model(pair):
    return llava_ref.load(*pair, threads=1)


def test_arrays_and_number_are_those_of_a_plain_run(model):
    request = model.raw_request("red <image><image> and", [RGB, RGB[::-1]])
    found = gradients(model, request, lambda logits: logits[-1, 9], ["projector.out", "blk.1.*", "*.kq_soft_max"])
    run = model.run(request, names=["projector.out", "blk.1.*", "*.kq_soft_max"])
    assert found.arrays.keys() == run.trace.keys() and "projector.out#1" in found.arrays
    for name, x in run.trace.items():
        np.testing.assert_array_equal(found.arrays[name], x)
        assert found.gradients[name].shape == x.shape and np.isfinite(found.gradients[name]).all()
    assert found.value == run.logits[-1, 9]
    assert np.abs(found.gradients["projector.out"]).max() > 0
    # the last block's output is followed by a norm and one row of the output matrix, at the last position alone
    assert not found.gradients["blk.1.out"][:-1].any() and found.gradients["blk.1.out"][-1].any()
    again = model.request_logits(request)
    np.testing.assert_array_equal(again, run.logits)  # nothing stays attached


def test_a_gradient_goes_through_an_edit_in_torch(model):
    request = model.raw_request("red <image>", [RGB])
    plain = gradients(model, request, lambda logits: logits[-1, 9], ["projector.out", "vision.pixels"])
    with model.intervene({"blk.0.out": lambda x: x * 1}):
        same = gradients(model, request, lambda logits: logits[-1, 9], ["projector.out", "vision.pixels"])
    with model.intervene({"projector.out": lambda x: x * 2}):
        double = gradients(model, request, lambda logits: logits[-1, 9], ["vision.features"])
    np.testing.assert_array_equal(plain.gradients["vision.pixels"], same.gradients["vision.pixels"])
    assert np.isfinite(double.gradients["vision.features"]).all()
    with (
        model.intervene({"blk.0.out": lambda x: x.detach().numpy()}),
        pytest.raises(ParameterError, match="stage: projector.out: has no gradient: .* or an edit cut it off"),
    ):
        gradients(model, request, lambda logits: logits[-1, 9], ["projector.out", "blk.1.out"])


REFUSED = [
    (lambda logits: logits[-1], ["embd"], r"of: Tensor of shape \[372\]: expected a torch tensor of one number"),
    (lambda logits: 1.0, ["embd"], "of: float: expected a torch tensor of one number"),
    (lambda logits: logits[-1, 0].detach(), ["embd"], "of: its number: does not depend on any of the stages"),
    (lambda logits: logits[-1, 0], ["image.seen"], "stage: image.seen: has whole numbers and no gradient"),
    (lambda logits: logits[-1, 0], ["blk.9.out"], "stage: 'blk.9.out': fits none"),
    (lambda logits: logits[-1, 0], ["vision.pixels"], "of: its number: does not depend on any of the stages"),
]


@pytest.mark.parametrize("of, names, says", REFUSED, ids=lambda x: str(x)[:24])
def test_what_has_no_gradient_is_refused(model, of, names, says):
    request = model.raw_request("red <image>", [RGB]) if names == ["image.seen"] else model.raw_request("red")
    with pytest.raises(ParameterError, match=says):
        gradients(model, request, of, names)


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"backend": "numpy"}, "backend: 'numpy': has no gradients, expected 'torch'"),
        ({"precision": "ggml"}, "precision: 'ggml': has no gradients, expected 'exact'"),
    ],
)
def test_other_backends_are_refused(pair, settings, says):
    model = llava_ref.load(*pair, **settings)
    with pytest.raises(ParameterError, match=says):
        gradients(model, model.raw_request("red"), lambda logits: logits[-1, 0], ["embd"])


reason = reference_hf.missing()


@pytest.mark.oracle
@pytest.mark.skipif(bool(reason), reason=str(reason))
@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_gradients_are_those_of_transformers(family, tmp_path):
    from llava_ref.conformance.engines.hf import from_gguf

    pair = FAMILIES[family](tmp_path)
    model, theirs = llava_ref.load(pair.text, pair.mmproj, profile="hf"), from_gguf.load(pair.text, pair.mmproj)
    request = model.raw_request("the <image> is red", [RGB])
    names = ["vision.pixels", "vision.blk.0.layer_out", "projector.out", "embd", "blk.0.out"]
    ours = gradients(model, request, of, names)
    hf, kept = theirs.module.model, {}

    def keep(name, x):
        kept[name] = x
        x.retain_grad()

    def output(name):
        return lambda module, args, out: keep(name, out[0] if isinstance(out, tuple) else out)

    hf.vision_tower.encoder.layers[0].register_forward_hook(output("vision.blk.0.layer_out"))
    hf.multi_modal_projector.register_forward_hook(output("projector.out"))
    theirs.decoder.layers[0].register_forward_pre_hook(lambda module, args: keep("embd", args[0]))
    theirs.decoder.layers[0].register_forward_hook(output("blk.0.out"))
    pixels = torch.from_numpy(model.preprocess(request.images[0]).pixels).requires_grad_()
    ids = torch.tensor([[theirs.image_token if token < 0 else token for token in request.token_ids]])
    extra = {"token_type_ids": (ids == theirs.image_token).long()} if family == "gemma3" else {}
    logits = theirs.module(input_ids=ids, pixel_values=pixels, **extra).logits[0, :, : theirs.n_vocab]
    of(logits).backward()
    assert ours.value == pytest.approx(of(logits).item(), rel=1e-4)
    for name in names:
        want = (pixels if name == "vision.pixels" else kept[name]).grad[0].numpy()
        apart = np.linalg.norm(ours.gradients[name] - want) / np.linalg.norm(want)
        assert apart < 1e-4, (name, apart)
