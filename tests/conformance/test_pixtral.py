"""Pixtral and Mistral Small 3.1 against transformers (profile hf) and llama.cpp (settings EXACT), stage by stage, on
random pairs."""

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.conformance.compare.comparing import parts
from llava_ref.conformance.engines.hf import pixtral_prompt, settings
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.engines.reference import Case, Run
from llava_ref.generation.sampling import Sampling
from llava_ref.model import Llava
from llava_ref.tracing.distance import rel_rms

from .family_stages import WholePictureStages, plain
from .pixtral_cases import CASES, FAMILY
from .reference_cases import model_of, random_sizes

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
__all__ = ["FAMILY"]  # the fixtures read it
MODELS = {"Pixtral": "a wide one, as the template has it", "Mistral Small 3.1": "merged, a wide one in the middle"}


class TestStages(WholePictureStages):
    def fed(self, case: Case, run: Run, model: Llava) -> list[Any]:
        """Return llama.cpp's prompt with the rows of its own tower, its breaks among them."""
        pictures = [array for name, array in run.stages.items() if plain(name) == "image.rgb"]
        rows = [image.rows for image in oracle.Oracle(case.text, case.mmproj).encode(pictures)] if pictures else []
        return list(parts(run.token_ids, rows))


def resizable(width: int, height: int) -> bool:
    return max(width, height) <= 100 * min(width, height)


def vision_of(case: Case) -> settings.VisionSettings:
    assert case.mmproj is not None
    file = llava_ref.gguf.read(case.mmproj)
    return replace(settings.read_tower(file), merge=file.get("clip.vision.spatial_merge_size", 1))


@pytest.mark.parametrize("name", MODELS.values())
def test_positions_from_the_size_alone_are_the_references(case: Any, name: str) -> None:
    """Sizes below and above every limit among them."""
    c, sizes = case(name), random_sizes(3000, resizable)
    vision = vision_of(c)
    side = vision.config["patch_size"] * vision.merge
    theirs = [(height // side, width // side) for height, width in pixtral_prompt.sizes(sizes, vision)]
    model = model_of(c, "hf")
    assert [model.span(*size).grid for size in sizes] == theirs
    assert [model.span(*size).n_rows for size in sizes] == [lines * across for lines, across in theirs]
    counts = [rows * columns for rows, columns in oracle.Oracle(c.text, c.mmproj, timeout=600).grids(sizes)]
    assert [model_of(c, "llama.cpp").span(*size).n_rows for size in sizes] == counts


@pytest.mark.parametrize("name", MODELS.values())
def test_pixels_of_random_sizes_are_the_references(case: Any, name: str) -> None:
    c, sizes, rng = case(name), random_sizes(400, resizable, 24), np.random.default_rng(4)
    pictures = [rng.integers(0, 256, (height, width, 3), np.uint8) for width, height in sizes]
    padded, _ = pixtral_prompt.preprocess([Image.fromarray(picture) for picture in pictures], vision_of(c))
    hf, llama = (model_of(c, profile) for profile in ("hf", "llama.cpp"))
    for picture, pixels in zip(pictures, padded.pixels(), strict=True):
        assert (hf.preprocess(hf.decode_image(picture)).pixels[0] == pixels).all()
    for picture, image in zip(pictures, oracle.Oracle(c.text, c.mmproj).encode(pictures), strict=True):
        assert (llama.preprocess(llama.decode_image(picture)).pixels[0] == image.pixels).all()
        assert rel_rms(llama.encode_image(picture), image.rows) < 2e-3


def test_a_picture_so_thin_that_it_vanishes_fails_in_transformers_too(case: Any) -> None:
    c = case(MODELS["Pixtral"])
    (height, width), *_ = pixtral_prompt.sizes([(1, 113)], vision_of(c))
    assert not width and height
    with pytest.raises(llava_ref.LlavaError, match="one side vanishes"):
        model_of(c, "hf").span(1, 113)


@pytest.mark.parametrize("name", MODELS.values())
def test_both_references_agree_on_pictures_that_neither_resizes(case: Any, ran: Any, within: Any, name: str) -> None:
    """Whole squares, 8 or more: the same pixels, rows and logits, however the breaks come in."""
    c, side = case(name), 16 if name == MODELS["Pixtral"] else 28
    picture = np.random.default_rng(5).integers(0, 256, (3 * side, 4 * side, 3), np.uint8)
    Image.fromarray(picture).save(c.images[0].with_name("whole.png"))
    sent = replace(c, images=(c.images[0].with_name("whole.png"),))
    stages = ["vision.pixels", "projector.out", "result_output"]
    llama, hf = (engine(stages=stages).run(sent, n_greedy=8) for engine in (LlamaCpp, Transformers))
    assert len(llama.token_ids) == len(hf.token_ids) and llama.greedy == hf.greedy
    breaks = [(mine, theirs) for mine, theirs in zip(llama.token_ids, hf.token_ids, strict=True) if mine != theirs]
    assert breaks == 2 * [(-1, model_of(c, "hf").tokenizer.encode("[IMG_BREAK]")[-1])]
    assert (llama.stages["vision.pixels"] == hf.stages["vision.pixels"]).all()
    for stage, bound in (("projector.out", 1.2e-3), ("result_output", 2.5e-3)):
        error = rel_rms(llama.stages[stage], hf.stages[stage])
        within(f"Pixtral: llama.cpp and transformers, {stage}", error, bound)


@pytest.mark.parametrize("name", MODELS.values())
def test_an_answer_to_a_conversation(case: Any, name: str) -> None:
    """A system text opens the last question; `</s>` ends an answer."""
    c = case(name)
    model = model_of(c, "hf")
    url = f"data:image/png;base64,{base64.b64encode(c.images[0].read_bytes()).decode()}"
    content = [{"type": "text", "text": "what is"}, {"type": "image_url", "image_url": {"url": url}}]
    said = [("system", "red"), ("user", content), ("assistant", "blue"), ("user", "how many")]
    request = model.request([{"role": role, "content": text} for role, text in said])
    rendered = "<s>[INST]what is<image>[/INST]blue</s>[INST]red\n\nhow many[/INST]"
    run = Transformers(stages=["result_output"]).run(replace(c, prompt=rendered), n_greedy=4)
    assert tuple(request.token_ids) == run.token_ids
    reply = model.answer(request, Sampling(), max_tokens=4).finish()
    assert tuple(reply.token_ids) == run.greedy
    assert model.tokenizer.encode("</s>")[-1] in model.tokenizer.end_ids


def test_greedy_does_not_say_one_thing_only(ran: Any) -> None:
    """Equal tokens mean something only if they differ from prompt to prompt."""
    said = [ran(name, "hf").greedy for name in CASES]
    assert len(set(said)) == len(CASES) and len({token for tokens in said for token in tokens}) >= 20
