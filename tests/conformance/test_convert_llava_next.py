"""The converter on a folder of LLaVA-1.6 as transformers saves it, whose own model then runs beside the pair."""

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.conformance.convert import cli as convert
from llava_ref.conformance.engines.hf import from_gguf, llava_next, settings
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.pairs.pairs import Pair, TextSpec, VisionSpec, build
from llava_ref.tracing.distance import rel_rms

from .tiny_vocabulary import N_BASE, fast_tokenizer

reason = reference_hf.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
TOWER = VisionSpec(image_size=28, patch_size=7, sizes=((28, 56), (84, 28), (56, 84)), feature_layer=3, middle=48)
IMAGE = N_BASE  # the token's id; rows without a token stand behind it


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Pair]:
    """Save a random model, tokenizer and processor; return model, processor, and the pair made of the folder."""
    import torch
    from transformers import LlavaNextForConditionalGeneration

    pair = build(tmp_path_factory.mktemp("pair"), TextSpec(), TOWER)
    config = from_gguf.load(pair.text, pair.mmproj).module.config
    config.text_config.vocab_size, config.image_token_index, config.image_token_id = N_BASE + 9, IMAGE, IMAGE
    torch.manual_seed(0)
    model = LlavaNextForConditionalGeneration(config).eval()
    reference_hf._randomise(model, 0)
    folder = tmp_path_factory.mktemp("hf") / "tiny-llava-next"
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(fast_tokenizer([("<image>", True), ("<pad>", True)])))
    processor = llava_next.image_processor(settings.read_vision(llava_ref.gguf.read(pair.mmproj)))
    processor.save_pretrained(folder)
    return model, processor, convert.convert_folder(folder, str(tmp_path_factory.mktemp("made") / "pair"), "F32")


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("size", [(90, 50), (40, 131), (20, 9)])
def test_a_saved_folder_says_what_its_pair_says(made: Any, within: Any, size: tuple[int, int], backend: str) -> None:
    import torch

    module, processor, files = made
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (*size[::-1], 3), np.uint8))
    model = llava_ref.load(files.text, files.mmproj, backend=backend, profile="hf")
    request = model.raw_request("abc b<image>cc", [picture])
    ids = torch.tensor([[IMAGE if token < 0 else token for token in request.token_ids]])
    seen = processor([picture], return_tensors="pt")
    with torch.no_grad():
        want = module(
            input_ids=ids, pixel_values=seen["pixel_values"], image_sizes=seen["image_sizes"],
            attention_mask=torch.ones_like(ids),
        ).logits[0]  # fmt: skip
    ours = model.request_logits(request)
    within(f"LLaVA-1.6, converted folder, logits, {backend}", rel_rms(ours, want[:, : ours.shape[1]].numpy()), 2e-5)
    assert ours.shape == (len(request.token_ids), N_BASE), "unused rows of the vocabulary are left out"


def test_the_pair_says_what_the_folder_says(made: Any) -> None:
    """Sizes are widths and heights in the file, heights and widths in the folder; the newline row is there."""
    file = llava_ref.gguf.read(made[2].mmproj)
    assert file["clip.vision.image_grid_pinpoints"] == [28, 56, 84, 28, 56, 84]
    assert file.tensors["v.image_newline"].shape == (TextSpec().width,) and "mm.2.weight" in file.tensors
