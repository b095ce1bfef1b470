"""Qwen2-VL and Qwen2.5-VL against transformers (profile hf) and against llama.cpp (settings EXACT), stage by stage, on
random pairs.

llama.cpp rounds pixels and the patch kernels to float16 and reads the merger's GELU from a table of float16; its
decoder is float32 throughout.
"""

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.generation.sampling import Sampling

from .family_stages import WholePictureStages
from .qwen2vl_cases import FAMILY
from .reference_cases import model_of, random_sizes

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
__all__ = ["FAMILY"]  # the fixtures read it
MODELS = {"Qwen2.5-VL": "2.5, a wide one in the middle", "Qwen2-VL": "2, a tall one first"}


class TestStages(WholePictureStages):
    pass


def resizable(width: int, height: int) -> bool:
    return max(width, height) <= 200 * min(width, height)


@pytest.mark.parametrize("name", MODELS.values())
def test_positions_from_the_size_alone_are_the_references(case: Any, name: str) -> None:
    """Sizes below and above every limit among them: transformers' largest picture has 12.8 million pixels."""
    import llava_ref
    from llava_ref.conformance.engines.hf import qwen2vl_prompt, settings

    c, sizes = case(name), random_sizes(6000, resizable)
    vision = settings.read_tower(llava_ref.gguf.read(c.mmproj))
    theirs = {
        "hf": qwen2vl_prompt.grids(sizes, vision),
        "llama.cpp": oracle.Oracle(c.text, c.mmproj, timeout=600).grids(sizes),
    }
    for profile, grids in theirs.items():
        model = model_of(c, profile)
        assert [model.span(*size).grid for size in sizes] == grids
        assert [model.span(*size).n_rows for size in sizes] == [rows * columns for rows, columns in grids]
    differ = [size for size, *grids in zip(sizes, *theirs.values(), strict=True) if grids[0] != grids[1]]
    assert len(differ) > 20


def test_pixels_of_random_sizes_are_the_references(case: Any) -> None:
    from llava_ref.conformance.engines.hf import from_gguf, qwen2vl_prompt

    c, sizes, rng = case(MODELS["Qwen2-VL"]), random_sizes(400, resizable, 24), np.random.default_rng(4)
    pictures = [rng.integers(0, 256, (height, width, 3), np.uint8) for width, height in sizes]
    vision = from_gguf.load(c.text, c.mmproj).vision
    assert vision is not None
    patches, _ = qwen2vl_prompt.preprocess([Image.fromarray(picture) for picture in pictures], vision)
    hf, llama = (model_of(c, profile) for profile in ("hf", "llama.cpp"))
    for picture, pixels in zip(pictures, patches.pixels(14), strict=True):
        assert (hf.preprocess(hf.decode_image(picture)).pixels[0] == pixels).all()
    for picture, image in zip(pictures, oracle.Oracle(c.text, c.mmproj).encode(pictures), strict=True):
        assert (llama.preprocess(llama.decode_image(picture)).pixels[0] == image.pixels).all()


@pytest.mark.parametrize("name", MODELS.values())
def test_an_answer_to_a_conversation(case: Any, name: str) -> None:
    """A conversation becomes the prompt that ChatML asks for, with the system text that Qwen puts where there is none;
    `<|im_end|>` ends an answer."""
    c = case(name)
    model = model_of(c, "hf")
    url = f"data:image/png;base64,{base64.b64encode(c.images[0].read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is"}]
    request = model.request([{"role": "user", "content": content}])
    rendered = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    rendered += "<image>what is<|im_end|>\n<|im_start|>assistant\n"
    run = Transformers(stages=["result_output"]).run(replace(c, prompt=rendered), n_greedy=4)
    assert tuple(request.token_ids) == run.token_ids
    reply = model.answer(request, Sampling(), max_tokens=4).finish()
    assert tuple(reply.token_ids) == run.greedy
    assert model.tokenizer.encode("<|im_end|>")[-1] in model.tokenizer.end_ids
