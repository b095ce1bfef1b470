"""A tower whose launches a device may record makes no array on the host while it runs: nothing can be copied then."""

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from llava_ref import load
from llava_ref.conformance.pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3
from llava_ref.conformance.pairs.idefics3 import Idefics3Spec, build_idefics3
from llava_ref.conformance.pairs.internvl import InternVLSpec, build_internvl
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec, build
from llava_ref.conformance.pairs.pixtral import PixtralSpec, build_pixtral
from llava_ref.conformance.pairs.qwen2vl import QwenTextSpec, QwenVisionSpec, build_qwen2vl

TEXT = TextSpec(n_layer=1, context=1024)
PAIRS = {
    "mlp": (build, TEXT, VisionSpec()),
    "mlp with norms": (build, TEXT, VisionSpec(norms=True)),
    "LLaVA-1.6": (build, TEXT, VisionSpec(image_size=28, patch_size=7, sizes=((28, 56), (56, 28)))),
    "ldp": (build, TEXT, VisionSpec(mobile="ldp")),
    "ldpv2": (build, TEXT, VisionSpec(mobile="ldpv2")),
    "Gemma 3": (build_gemma3, Gemma3Spec(n_layer=1), SiglipSpec()),
    "Idefics3": (build_idefics3, TEXT, Idefics3Spec(image_size=28, patch_size=7, longest=56)),
    "InternVL": (build_internvl, QwenTextSpec(sections=()), InternVLSpec()),
    "Pixtral": (build_pixtral, TEXT, PixtralSpec()),
    "Qwen2-VL": (build_qwen2vl, QwenTextSpec(), QwenVisionSpec(gated=False)),
}
ON_THE_HOST = {"ldp", "ldpv2", "Idefics3", "InternVL"}


class HostArrays(TorchFunctionMode):
    """Count the functions of torch that are given an array of numpy's, an index above all."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        given = [part for arg in args for part in (arg if isinstance(arg, tuple) else (arg,))]
        if any(isinstance(part, np.ndarray) for part in given):
            self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", PAIRS)
def test_what_may_be_recorded_makes_no_array_on_the_host(tmp_path, monkeypatch, name):
    build_pair, *specs = PAIRS[name]
    tower = load(None, build_pair(tmp_path, *specs).mmproj, backend="torch").tower
    tile = tower.preprocess(np.zeros((40, 90, 3), np.uint8)).pixels[:1]
    x, made = tower.ops.array(tile), []
    monkeypatch.setattr(torch, "from_numpy", lambda given, make=torch.from_numpy: made.append(given) or make(given))
    with HostArrays() as host:
        tower.encode(x)
    assert not tower.replays or not (host.seen or made)
    assert bool(host.seen or made) or name not in ON_THE_HOST, "the test sees what these do"
