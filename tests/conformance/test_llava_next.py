"""LLaVA-1.6 against transformers (profile hf) and llama.cpp (settings EXACT), stage by stage, on random pairs."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.conformance.compare.comparing import parts
from llava_ref.conformance.compare.conform import Conformance, conform
from llava_ref.conformance.convert import cli as convert
from llava_ref.conformance.convert import hf_config
from llava_ref.conformance.convert.hf_config import ConversionError
from llava_ref.conformance.engines.hf import from_gguf, llava_next, settings
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec, build
from llava_ref.conformance.pairs.vocabulary import vocabulary
from llava_ref.images import fit
from llava_ref.models.anyres import Anyres
from llava_ref.tracing.distance import kl, max_abs, rel_rms

from .reference_cases import EVERYTHING, OF_PICTURES, differing, trace, worst

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
BOUND, PICTURES, WHOLE, N_GREEDY = 2e-5, 2e-3, 5e-3, 8
SIZES = ((28, 56), (56, 28), (56, 56), (84, 28), (28, 84))
TOWER = VisionSpec(image_size=28, patch_size=7, sizes=SIZES, feature_layer=3)
WIDE, TALL, LARGE, TINY, THIN = (131, 40), (37, 112), (190, 180), (9, 5), (200, 3)  # width, height
WORDS = "what is the color of a large small red circle"


@dataclass(frozen=True)
class Asked:
    """A pair, a prompt, and the sizes of its pictures."""

    prompt: str
    sizes: tuple[tuple[int, int], ...]
    text: TextSpec = TextSpec(context=1024)
    vision: VisionSpec = TOWER


CASES = {
    "a wide one in the middle": Asked(f"{WORDS}<image>\n{WORDS}", (WIDE,)),
    "a tall one first, MHA, large eps": Asked(
        f"<image>{WORDS}", (TALL,), TextSpec(n_head_kv=4, eps=0.05), replace(TOWER, eps=0.05, use_gelu=True)
    ),
    "a large one last, no feature layer": Asked(
        f"{WORDS}<image>", (LARGE,), TextSpec(n_head_kv=1), replace(TOWER, feature_layer=None)
    ),
    "four of all shapes": Asked("<image>\n<image>the color<image><image> red", (TINY, THIN, TALL, LARGE)),
    "an odd number of patches, a size of one tile": Asked(
        "is<image>red<image>", (TALL, (40, 41)), TextSpec(tied=True),
        replace(TOWER, image_size=15, patch_size=5, sizes=((15, 15), (30, 45), (60, 15))),
    ),
    "exactly a tile, and one pixel more": Asked("<image>is<image>", ((28, 28), (29, 28))),
}  # fmt: skip


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(name: str) -> Case:
        asked, folder = CASES[name], tmp_path_factory.mktemp("pair")
        pair, rng = build(folder, asked.text, asked.vision), np.random.default_rng(len(name))
        images = tuple(folder / f"{i}.png" for i in range(len(asked.sizes)))
        for path, (width, height) in zip(images, asked.sizes, strict=True):
            Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        return Case(pair.text, pair.mmproj, images, asked.prompt)

    return make


@pytest.fixture(scope="module")
def ran(case: Any) -> Any:
    engines = {"hf": Transformers(stages=EVERYTHING), "llama.cpp": LlamaCpp(stages=EVERYTHING)}
    return cache(lambda name, profile: engines[profile].run(case(name), n_greedy=N_GREEDY))


def model_of(case: Case, profile: str, backend: str = "numpy", **quirks: str) -> llava_ref.Llava:
    return llava_ref.load(case.text, case.mmproj, backend=backend, threads=1, profile=profile, quirks=quirks)


def greedy(model: llava_ref.Llava, case: Case) -> tuple[int, ...]:
    """Return the likeliest tokens; a token that ends generation does not end them."""
    session, tokens = model.session(), list[int]()
    logits = session.feed(model.parts(model.raw_request(case.prompt, case.images)))
    while len(tokens) < N_GREEDY:
        tokens.append(int(logits.argmax()))
        logits = session.feed([tokens[-1:]])
    return tuple(tokens)


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("name", CASES)
def test_every_stage_of_transformers(case: Any, ran: Any, within: Any, name: str, backend: str) -> None:
    """Pixels equal; tiles numbered as transformers' batch has them; the rows put together as it packs them."""
    c, run, model = case(name), ran(name, "hf"), model_of(case(name), "hf", backend)
    ours = trace(model, c)
    assert tuple(model.raw_request(c.prompt, c.images).token_ids) == run.token_ids
    assert set(run.stages) == set(ours) and not differing(ours, run.stages, BOUND)
    for stage, array in run.stages.items():
        assert not stage.startswith(("image.", "vision.pixels")) or (ours[stage] == array).all()
    within(f"LLaVA-1.6, transformers, every stage, {backend}", worst(ours, run.stages), BOUND)
    logits = rel_rms(ours["result_output"], run.stages["result_output"])
    within(f"LLaVA-1.6, transformers, logits, {backend}", logits, BOUND)
    assert greedy(model, c) == run.greedy


def test_profile_llava_means_the_same(case: Any, ran: Any) -> None:
    """But for the text around the pictures: their rows are equal."""
    name = "four of all shapes"
    ours, run = trace(model_of(case(name), "llava"), case(name)), ran(name, "hf")
    of_pictures = {stage: array for stage, array in run.stages.items() if stage.startswith(OF_PICTURES)}
    assert len(of_pictures) > 100 and not differing(ours, of_pictures, BOUND)


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("name", CASES)
def test_every_stage_of_llama_cpp(case: Any, ran: Any, within: Any, name: str, backend: str) -> None:
    c, run, model = case(name), ran(name, "llama.cpp"), model_of(case(name), "llama.cpp", backend)
    ours = trace(model, c)
    assert tuple(model.raw_request(c.prompt, c.images).token_ids) == run.token_ids
    assert set(run.stages) == {stage for stage in ours if not stage.startswith("image.seen")}
    pictures = {stage: array for stage, array in run.stages.items() if stage.startswith(OF_PICTURES)}
    assert not differing(ours, pictures, PICTURES)
    for stage, array in pictures.items():
        assert not stage.startswith(("image.rgb", "vision.pixels")) or (ours[stage] == array).all()
    logits = ours["result_output"], run.stages["result_output"]
    within(f"LLaVA-1.6, llama.cpp EXACT, image rows, {backend}", worst(ours, pictures), PICTURES)
    within(f"LLaVA-1.6, llama.cpp EXACT, end to end, logits, {backend}", rel_rms(*logits), WHOLE)
    within(f"LLaVA-1.6, llama.cpp EXACT, end to end, KL, {backend}", kl(*logits).max(), 5e-4)
    assert greedy(model, c) == run.greedy


@pytest.mark.parametrize("name", CASES)
def test_the_decoder_of_llama_cpp_given_its_image_rows(case: Any, ran: Any, within: Any, name: str) -> None:
    run, model = ran(name, "llama.cpp"), model_of(case(name), "llama.cpp")
    tiles = [array for stage, array in run.stages.items() if stage.partition("#")[0] == "projector.out"]
    logits, want = model.forward(list(parts(run.token_ids, tiles))), run.stages["result_output"]
    within("LLaVA-1.6, llama.cpp EXACT, logits, its image rows", rel_rms(logits, want), 5e-6)
    within("LLaVA-1.6, llama.cpp EXACT, its image rows: max abs", max_abs(logits, want), 2e-4)
    within("LLaVA-1.6, llama.cpp EXACT, its image rows: KL", kl(logits, want).max(), 1e-9)


def test_a_picture_turned_by_exif_is_counted_as_it_is_seen(case: Any, tmp_path: Any) -> None:
    """A wide picture that EXIF turns upright has the rows of a tall one in profile hf."""
    picture, exif = Image.new("RGB", (120, 30)), Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    c = replace(case("a wide one in the middle"), images=(tmp_path / "turned.jpg",))
    model = model_of(c, "hf")
    request = model.raw_request(c.prompt, c.images)
    rows = model.encode_image(c.images[0])
    assert len(rows) == request.spans[0].n_rows == model.span(30, 120).n_rows != model.span(120, 30).n_rows
    assert tuple(request.token_ids) == Transformers(stages=["result_output"]).run(c).token_ids


@pytest.mark.parametrize("profile", ["hf", "llama.cpp"])
def test_a_converted_model(tmp_path: Path, within: Any, profile: str) -> None:
    """transformers' own module becomes a pair that says the same: sizes the other way round, the newline row."""
    pair = build(tmp_path, TextSpec(), replace(TOWER, middle=48, sizes=((28, 56), (84, 28), (56, 84))))
    module = from_gguf.load(pair.text, pair.mmproj).module
    files = convert.from_module(module, vocabulary(), str(tmp_path / "made"))
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (90, 50, 3), np.uint8)).save(tmp_path / "p.png")
    one, other = (Case(f.text, f.mmproj, (tmp_path / "p.png",), "is<image>red") for f in (pair, files))
    engine = Transformers() if profile == "hf" else LlamaCpp()
    run, ours = engine.run(one), trace(model_of(other, profile), other)
    within(f"LLaVA-1.6, converted, {profile}", rel_rms(ours["result_output"], run.stages["result_output"]),
           BOUND if profile == "hf" else WHOLE)  # fmt: skip


def test_the_converter_refuses_sizes_of_which_there_are_two() -> None:
    config = {"model_type": "llava_next", "image_grid_pinpoints": [[28, 56]]}
    with pytest.raises(ConversionError, match="image_grid_pinpoints"):
        hf_config.read_vision("folder", config, 48, {"image_grid_pinpoints": [[56, 28]]})


N_SIZES = 200


def random_sizes() -> list[tuple[int, int]]:
    """Draw widths and heights from 1 to 600, small as often as large."""
    rng = np.random.default_rng(16)
    return [tuple(int(n) for n in np.exp(rng.uniform(0, np.log(600), 2))) for _ in range(N_SIZES)]  # type: ignore[misc]


def test_positions_from_the_size_alone_are_transformers(case: Any) -> None:
    for name in ("a wide one in the middle", "an odd number of patches, a size of one tile"):
        c = case(name)
        model, sizes = model_of(c, "hf"), random_sizes()
        vision = settings.read_vision(llava_ref.gguf.read(c.mmproj))
        assert [model.span(*size).n_rows for size in sizes] == llava_next.n_rows(sizes, vision)


def test_positions_from_the_size_alone_are_llama_cpp_s(case: Any) -> None:
    c = case("a wide one in the middle")
    model, sizes = model_of(c, "llama.cpp"), random_sizes()
    pictures = [np.zeros((height, width, 3), np.uint8) for width, height in sizes]
    found = [len(image.rows) for image in oracle.Oracle(c.text, c.mmproj, timeout=600).encode(pictures)]
    assert [model.span(*size).n_rows for size in sizes] == found


def compared(case: Case, run: Any, **settings: str) -> Conformance:
    return conform(
        lambda changed: llava_ref.load(case.text, case.mmproj, backend="numpy", quirks=changed, **settings),  # type: ignore[arg-type]
        case,
        run,
    )


@pytest.mark.parametrize("reference", ["hf", "llama.cpp"])
def test_conform_in_its_profile_every_stage_agrees(case: Any, ran: Any, reference: str) -> None:
    for name in ("a wide one in the middle", "exactly a tile, and one pixel more"):
        report = compared(case(name), ran(name, reference), profile=reference)
        assert report.same and not report.findings


def named(report: Conformance) -> dict[str, tuple[str, ...]]:
    """Return the explanation of each stage out of its bound that begins a finding."""
    return {finding.stage: finding.explained for finding in report.findings}


def test_conform_names_each_difference(case: Any, ran: Any) -> None:
    name = "a wide one in the middle"
    found = named(compared(case(name), ran(name, "llama.cpp"), profile="hf"))
    assert found["vision.pixels"] == ("overview=last",)
    assert found["token_ids"] == ("tiles=apart --quirk text_pieces=separate-prefixed",)


def test_conform_names_differences_that_hide_each_other(case: Any, ran: Any) -> None:
    """A large picture is resized in the other order of passes, too: no quirk alone brings its tiles back."""
    name = "a large one last, no feature layer"
    found = named(compared(case(name), ran(name, "llama.cpp"), profile="hf"))
    assert found["token_ids"] == ("tiles=apart",)
    assert any("overview=last" in change for stage, why in found.items() if "pixels" in stage for change in why)


def test_conform_says_why_a_small_picture_does_not_line_up(case: Any, tmp_path: Any) -> None:
    c = case("a wide one in the middle")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 27, 3), np.uint8)).save(tmp_path / "small.png")
    c = replace(c, images=(tmp_path / "small.png",))
    found = named(compared(c, LlamaCpp().run(c), profile="hf"))
    assert found["token_ids"] == ("tiling=larger --quirk text_pieces=separate-prefixed",)


@pytest.mark.parametrize("fault", ["newline", "unpad", "base last", "arithmetic", "letterbox"])
def test_a_fault_is_seen(case: Any, ran: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """The faults: another row for the newline; padding kept; the overview last; the size in float32; another centre."""
    name = "four of all shapes"
    c, run = case(name), ran(name, "hf")
    quirks = {"base last": {"overview": "last"}, "arithmetic": {"tiling": "larger"}}.get(fault, {})
    if fault == "unpad":
        monkeypatch.setattr(Anyres, "_grid", lambda self, tiles, width, height: tiles)
    elif fault == "newline":
        sound = Anyres.pack
        monkeypatch.setattr(Anyres, "pack", lambda self, rows, newline, *rest: sound(self, rows, newline * 0, *rest))
    elif fault == "letterbox":
        centred = fit.resize_pad
        monkeypatch.setattr(fit, "resize_pad", lambda *given: (np.roll(centred(*given)[0], 1, 0), centred(*given)[1]))
    ours = trace(model_of(c, "hf", **quirks), c)
    lined_up = {stage: array for stage, array in run.stages.items() if stage in ours}
    assert len(lined_up) < len(run.stages) or differing(ours, lined_up, BOUND)
