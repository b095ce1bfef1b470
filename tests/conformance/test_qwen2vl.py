"""Qwen2-VL and Qwen2.5-VL against transformers (profile hf) and against llama.cpp (settings EXACT), stage by stage, on
random pairs.

llama.cpp rounds pixels and the patch kernels to float16 and reads the merger's GELU from a table of float16; its
decoder is float32 throughout.
"""

import base64
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_ref.conformance.compare.comparing import parts
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.engines.reference import Case, Run
from llava_ref.generation.sampling import Sampling
from llava_ref.generation.units import PictureRows
from llava_ref.loading import load
from llava_ref.model import Llava
from llava_ref.tracing.distance import kl, max_abs, rel_rms

from .qwen2vl_cases import ANY_SIZE, WHOLE_BLOCKS, case_of
from .reference_cases import EVERYTHING, OF_PICTURES, differing, trace, worst

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
BOUND, PICTURES, WHOLE, N_GREEDY = 2e-5, 2e-3, 5e-3, 8
CASES = WHOLE_BLOCKS | ANY_SIZE
PICTURE = [name for name, sent in CASES.items() if sent.grids or sent.sizes]
BACKENDS = pytest.mark.parametrize("backend", ["torch", "numpy"])
MODELS = {"Qwen2.5-VL": "2.5, a wide one in the middle", "Qwen2-VL": "2, a tall one first"}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda name: case_of(tmp_path_factory.mktemp("pair"), CASES[name]))


@pytest.fixture(scope="module")
def ran(case: Any) -> Any:
    engines = {"hf": Transformers(stages=EVERYTHING), "llama.cpp": LlamaCpp(stages=EVERYTHING)}
    return cache(lambda name, profile: engines[profile].run(case(name), n_greedy=N_GREEDY))


def model_of(case: Case, profile: str, backend: str = "numpy", **quirks: str) -> Llava:
    return load(case.text, case.mmproj, backend=backend, threads=1, profile=profile, quirks=quirks)


def greedy(model: Llava, case: Case) -> tuple[int, ...]:
    """Return the likeliest tokens; a token that ends generation does not end them."""
    request = model.raw_request(case.prompt, case.images)
    session, tokens = model.session(), list[int]()
    logits = session.feed(model.parts(request))
    while len(tokens) < N_GREEDY:
        tokens.append(int(logits.argmax()))
        logits = session.feed([tokens[-1:]])
    return tuple(tokens)


def of_pictures(stages: Any, wanted: bool = True) -> dict[str, np.ndarray]:
    return {name: array for name, array in stages.items() if name.startswith(OF_PICTURES) == wanted}


@BACKENDS
@pytest.mark.parametrize("name", CASES)
def test_every_stage_of_transformers(case: Any, ran: Any, within: Any, name: str, backend: str) -> None:
    c, run, model = case(name), ran(name, "hf"), model_of(case(name), "hf", backend)
    ours = trace(model, c)
    assert tuple(model.raw_request(c.prompt, c.images).token_ids) == run.token_ids
    assert list(run.stages) == list(ours)
    assert not differing(ours, run.stages, BOUND)
    within(f"Qwen2-VL, transformers, every stage, {backend}", worst(ours, run.stages), BOUND)
    logits = rel_rms(ours["result_output"], run.stages["result_output"])
    within(f"Qwen2-VL, transformers, logits, {backend}", logits, BOUND)
    assert greedy(model, c) == run.greedy


@pytest.mark.parametrize("name", PICTURE)
def test_image_rows_of_transformers_from_the_file(case: Any, ran: Any, within: Any, name: str) -> None:
    run, model = ran(name, "hf"), model_of(case(name), "hf", "torch")
    for i, path in enumerate(case(name).images):
        number = f"#{i}" if i else ""
        rgb = model.preprocess(model.decode_image(path))
        assert (rgb.seen == run.stages[f"image.seen{number}"]).all()
        assert (rgb.pixels[0] == run.stages[f"vision.pixels{number}"]).all()
        error = rel_rms(model.encode_image(path), run.stages[f"projector.out{number}"])
        within("Qwen2-VL, transformers, image rows, torch", error, BOUND)


@pytest.mark.parametrize("name", MODELS.values())
def test_profile_llava_means_the_same(case: Any, ran: Any, name: str) -> None:
    ours, run = trace(model_of(case(name), "llava"), case(name)), ran(name, "hf")
    assert list(ours) == list(run.stages) and not differing(ours, run.stages, BOUND)


@BACKENDS
@pytest.mark.parametrize("name", CASES)
def test_every_stage_of_llama_cpp(case: Any, ran: Any, within: Any, name: str, backend: str) -> None:
    c, run, model = case(name), ran(name, "llama.cpp"), model_of(case(name), "llama.cpp", backend)
    ours = trace(model, c)
    assert tuple(model.raw_request(c.prompt, c.images).token_ids) == run.token_ids
    assert list(run.stages) == [stage for stage in ours if not stage.startswith("image.seen")]
    assert not differing(of_pictures(ours), of_pictures(run.stages), PICTURES)
    for stage, array in run.stages.items():
        if stage.startswith(("image.rgb", "vision.pixels")):
            assert (ours[stage] == array).all()
    logits = ours["result_output"], run.stages["result_output"]
    within(f"Qwen2-VL, llama.cpp EXACT, end to end, logits, {backend}", rel_rms(*logits), WHOLE)
    within(f"Qwen2-VL, llama.cpp EXACT, end to end, KL, {backend}", kl(*logits).max(), 5e-4)
    assert greedy(model, c) == run.greedy


@BACKENDS
@pytest.mark.parametrize("name", CASES)
def test_the_decoder_of_llama_cpp_given_its_image_rows(
    case: Any, ran: Any, within: Any, name: str, backend: str
) -> None:
    run, model = ran(name, "llama.cpp"), model_of(case(name), "llama.cpp", backend)
    with model.trace(*EVERYTHING) as fed:
        model.forward(fed_parts(run, model))
    wanted = of_pictures(run.stages, False)
    assert not differing(fed, wanted, 5e-6)
    logits, what = (
        (fed["result_output"], wanted["result_output"]),
        f"Qwen2-VL, llama.cpp EXACT, its image rows, {backend}",
    )
    within(f"{what}: logits", rel_rms(*logits), 5e-6)
    within(f"{what}: max abs", max_abs(*logits), 2e-4)
    within(f"{what}: KL", kl(*logits).max(), 1e-9)


def fed_parts(run: Run, model: Llava) -> list[Any]:
    def of(stage: str) -> list[np.ndarray]:
        return [array for name, array in run.stages.items() if name.partition("#")[0] == stage]

    grids = [model.span(rgb.shape[1], rgb.shape[0]).grid for rgb in of("image.rgb")]
    return list(parts(run.token_ids, [PictureRows(*given) for given in zip(of("projector.out"), grids, strict=True)]))


N_SIZES = 200


def random_sizes(seed: int, largest: int, count: int = N_SIZES) -> list[tuple[int, int]]:
    """Draw widths and heights from 1 on, small as often as large, none of more than 200 to 1."""
    rng, sizes = np.random.default_rng(seed), list[tuple[int, int]]()
    while len(sizes) < count:
        width, height = (int(n) for n in np.exp(rng.uniform(0, np.log(largest), 2)))
        sizes += [(width, height)] * (max(width, height) <= 200 * min(width, height))
    return sizes


@pytest.mark.parametrize("name", MODELS.values())
def test_positions_from_the_size_alone_are_the_references(case: Any, name: str) -> None:
    """Sizes below and above every limit among them: transformers' largest picture has 12.8 million pixels."""
    import llava_ref
    from llava_ref.conformance.engines.hf import qwen2vl_prompt, settings

    c, sizes = case(name), random_sizes(16, 6000)
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

    c, sizes, rng = case(MODELS["Qwen2-VL"]), random_sizes(3, 400, 24), np.random.default_rng(4)
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
