"""LLaVA-1.6 against transformers (profile hf) and llama.cpp (settings EXACT), stage by stage, on random pairs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.conformance.compare.conform import Conformance
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
from llava_ref.tracing.distance import rel_rms

from .family_stages import BOUND, WHOLE, Asked, Family, FamilyStages, of_pictures
from .reference_cases import compared, differing, model_of, random_sizes, trace

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
SIZES = ((28, 56), (56, 28), (56, 56), (84, 28), (28, 84))
TOWER = VisionSpec(image_size=28, patch_size=7, sizes=SIZES, feature_layer=3)
WIDE, TALL, LARGE, TINY, THIN = (131, 40), (37, 112), (190, 180), (9, 5), (200, 3)  # width, height
WORDS = "what is the color of a large small red circle"
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
FAMILY = Family("LLaVA-1.6", build, CASES, TextSpec(context=1024), TOWER)


class TestStages(FamilyStages):
    def test_profile_llava_means_the_same(self, case: Any, ran: Any, name: str) -> None:
        """But for the text around the pictures: their rows are equal."""
        ours, pictures = trace(model_of(case(name), "llava"), case(name)), of_pictures(ran(name, "hf").stages)
        assert len(pictures) > 50 and not differing(ours, pictures, BOUND)


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


def test_positions_from_the_size_alone_are_transformers(case: Any) -> None:
    for name in ("a wide one in the middle", "an odd number of patches, a size of one tile"):
        c = case(name)
        model, sizes = model_of(c, "hf"), random_sizes(600, lambda width, height: True)
        vision = settings.read_vision(llava_ref.gguf.read(c.mmproj))
        assert [model.span(*size).n_rows for size in sizes] == llava_next.n_rows(sizes, vision)


def test_positions_from_the_size_alone_are_llama_cpp_s(case: Any) -> None:
    c = case("a wide one in the middle")
    model, sizes = model_of(c, "llama.cpp"), random_sizes(600, lambda width, height: True)
    pictures = [np.zeros((height, width, 3), np.uint8) for width, height in sizes]
    found = [len(image.rows) for image in oracle.Oracle(c.text, c.mmproj, timeout=600).encode(pictures)]
    assert [model.span(*size).n_rows for size in sizes] == found


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
