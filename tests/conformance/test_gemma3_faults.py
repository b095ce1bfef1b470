"""Faults planted in the model of Gemma 3, one at a time: each must move its picture's rows or its logits far beyond the
bound that a sound model meets."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.reference import Case, Run
from llava_ref.conformance.pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3
from llava_ref.images.resample import BICUBIC
from llava_ref.loading import load
from llava_ref.models import gemma3, siglip
from llava_ref.models.gemma3 import Gemma3, Gemma3Config
from llava_ref.ops.numpy_ops import NumpyOps
from llava_ref.tracing.distance import rel_rms

from .reference_cases import trace

reason = reference_hf.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
SOUND, SEEN, ERF = 2e-5, 2e-3, 3e-5
PROMPT = "what is the color of a large small red circle <image> and how many blue"
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Run]:
    folder = tmp_path_factory.mktemp("pair")
    pair = build_gemma3(folder, Gemma3Spec(rope_factor=8.0), SiglipSpec())
    noise = np.random.default_rng(0).integers(0, 256, (50, 131, 3), np.uint8)
    Image.fromarray(noise).save(folder / "wide.png")
    case = Case(pair.text, pair.mmproj, (folder / "wide.png",), PROMPT)
    return case, Transformers(stages=["projector.out", "result_output"]).run(case)


def distances(asked: tuple[Case, Run], **quirks: str) -> tuple[float, float]:
    """Return relRMS of image rows and of logits."""
    case, run = asked
    model = load(case.text, case.mmproj, backend="numpy", threads=1, profile="hf", quirks=quirks)
    ours = trace(model, case)
    rows, logits = ours["projector.out"], ours["result_output"]
    if logits.shape != run.stages["result_output"].shape:
        return rel_rms(rows, run.stages["projector.out"]), float("inf")
    return rel_rms(rows, run.stages["projector.out"]), rel_rms(logits, run.stages["result_output"])


def settings(change: Callable[[Gemma3Config], Gemma3Config]) -> Callable[[Patch], None]:
    """Plant a fault in what the decoder makes of the file's keys."""
    sound = gemma3.read
    return lambda patch: patch.setattr(gemma3, "read", lambda file: change(sound(file)))


def text_weights(change: Callable[[Any], Any]) -> Callable[[Patch], None]:
    sound = gemma3._load_block
    return lambda patch: patch.setattr(gemma3, "_load_block", lambda *given: change(sound(*given)))


def tower_weights(change: Callable[[Any], Any]) -> Callable[[Patch], None]:
    sound = siglip.load
    return lambda patch: patch.setattr(siglip, "load", lambda *given: change(sound(*given)))


def text_rope(**change: Any) -> Callable[[Gemma3Config], Gemma3Config]:
    return lambda c: replace(c, text=replace(c.text, rope=replace(c.text.rope, **change)))


def activation(wrong: str, meant: str = "gelu_tanh") -> Callable[[Patch], None]:
    """Plant another activation in the decoder's MLP, which is 88 wide."""
    sound = NumpyOps.activation

    def change(self: Any, x: Any, kind: Any) -> Any:
        return sound(self, x, wrong if kind == meant and x.shape[-1] == 88 else kind)

    return lambda patch: patch.setattr(NumpyOps, "activation", change)


def head_norms_left_out(patch: Patch) -> None:
    sound = NumpyOps.rms_norm
    skip = lambda self, x, gain, eps: x if x.ndim == 3 else sound(self, x, gain, eps)  # noqa: E731
    patch.setattr(NumpyOps, "rms_norm", skip)


def rows_of_columns(patch: Patch) -> None:
    sound = siglip.pool

    def pool(x: Any, n: int, m: int) -> Any:
        return sound(x.reshape((n, n, -1)).swapaxes(0, 1).reshape(x.shape), n, m)

    patch.setattr(siglip, "pool", pool)


def rows_scaled(patch: Patch) -> None:
    sound = siglip.project
    patch.setattr(siglip, "project", lambda *given: sound(*given) * 60**0.5)


def set_to(target: Any, name: str, value: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(target, name, value)


FAULTS: dict[str, Callable[[Patch], None]] = {
    "causal inside the picture": set_to(Gemma3, "WHOLE_PICTURES", False),
    "window ignored": settings(lambda c: replace(c, text=replace(c.text, window=1 << 20))),
    "window one too long": settings(lambda c: replace(c, text=replace(c.text, window=8))),
    "window one too short": settings(lambda c: replace(c, text=replace(c.text, window=6))),
    "full layers one early": settings(lambda c: replace(c, period=5)),
    "one rope base for all layers": settings(lambda c: replace(c, local_rope=replace(c.local_rope, base=1e6))),
    "linear factor on window layers, too": settings(
        lambda c: replace(c, local_rope=replace(c.local_rope, scaling="linear", factor=8.0))
    ),
    "linear factor left out": settings(text_rope(scaling="none", factor=1.0)),
    "scale of width / heads": settings(lambda c: replace(c, text=replace(c.text, attention_scale=15**-0.5))),
    "token rows not times sqrt(width)": set_to(Gemma3, "embed", lambda self, ids: self.weights.embd.rows(ids)),
    "picture rows times sqrt(width)": rows_scaled,
    "head norms left out": head_norms_left_out,
    "+1 missing in the head norms": text_weights(lambda w: replace(w, q_norm=w.q_norm - 1, k_norm=w.k_norm - 1)),
    "+1 once more in a block's norm": text_weights(lambda w: replace(w, ffn_norm=w.ffn_norm + 1)),
    "post norms exchanged": text_weights(
        lambda w: replace(w, attn_post_norm=w.ffn_post_norm, ffn_post_norm=w.attn_post_norm)
    ),
    "soft_emb_norm +1 once more": tower_weights(lambda w: replace(w, soft_emb_norm=w.soft_emb_norm + 1)),
    "pooled rows column first": rows_of_columns,
    "bicubic for bilinear": set_to(siglip, "BILINEAR", BICUBIC),
    "quick GELU in the tower": set_to(siglip, "activation", lambda c: "gelu_quick"),
    "SiLU in the text": activation("silu"),
}
SMALL: dict[str, Callable[[Patch], None]] = {  # below llama.cpp's own rounding, so that only transformers shows them
    "erf GELU in the tower": set_to(siglip, "activation", lambda c: "gelu_erf"),
    "erf GELU in the text": activation("gelu_erf"),
}


def test_the_sound_model_is_within_the_bound(asked: tuple[Case, Run]) -> None:
    assert max(distances(asked)) < SOUND


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(asked: tuple[Case, Run], monkeypatch: Patch, name: str) -> None:
    FAULTS[name](monkeypatch)
    assert max(distances(asked)) > SEEN


@pytest.mark.parametrize("name", SMALL)
def test_the_other_gelu_is_seen(asked: tuple[Case, Run], monkeypatch: Patch, name: str) -> None:
    SMALL[name](monkeypatch)
    assert ERF < max(distances(asked)) < SEEN


@pytest.mark.parametrize("quirk", [{"fit": "letterbox"}, {"image_newlines": "none"}])
def test_a_quirk_of_llama_cpp_is_seen(asked: tuple[Case, Run], quirk: dict[str, str]) -> None:
    rows, logits = distances(asked, **quirk)
    assert (rows > 0.3) == ("fit" in quirk) and logits > SEEN
