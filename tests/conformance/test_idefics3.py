"""SmolVLM and Idefics3 against transformers (profile hf) and llama.cpp (settings EXACT), stage by stage, on random
pairs."""

from collections.abc import Callable
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
from llava_ref.conformance.engines.hf import idefics3_prompt, settings
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.engines.reference import Case, Run
from llava_ref.conformance.pairs.idefics3 import TEMPLATE, Idefics3Spec, build_idefics3
from llava_ref.conformance.pairs.pairs import TextSpec
from llava_ref.images.resample import LANCZOS
from llava_ref.models import idefics3, named_tiles, siglip
from llava_ref.models.named_tiles import NamedTiles
from llava_ref.tracing.distance import kl, max_abs, rel_rms

from .reference_cases import EVERYTHING, OF_PICTURES, differing, trace, worst

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
BOUND, PICTURES, WHOLE, N_GREEDY = 2e-5, 2e-3, 5e-3, 8
TOWER = Idefics3Spec(image_size=28, patch_size=7, longest=112)
WIDE, TALL, SQUARE, TINY, THIN = (131, 40), (37, 212), (90, 90), (9, 5), (200, 3)  # width, height
WORDS = "what is the color of a large small red circle, 12 or 345"
TURN = "<|im_start|>User:<image>{}<end_of_utterance>\nAssistant:"


@dataclass(frozen=True)
class Asked:
    """A pair, a prompt, and the sizes of its pictures."""

    prompt: str
    sizes: tuple[tuple[int, int], ...]
    text: TextSpec = TextSpec(context=1024)
    vision: Idefics3Spec = TOWER


CASES = {
    "a wide one, as the template has it": Asked(TURN.format(WORDS), (WIDE,)),
    "a tall one first, MHA, large eps": Asked(
        f"<image>{WORDS}", (TALL,), TextSpec(n_head_kv=4, eps=0.05), replace(TOWER, eps=0.05, swapped=True)
    ),
    "a square one last, squares of 4 patches": Asked(
        f"{WORDS}\n\n<image>", (SQUARE,), TextSpec(n_head_kv=1, tied=True), replace(TOWER, merge=4)
    ),
    "four of all shapes": Asked(
        "<image>\n\n<image>the color<image><image> red", (TINY, THIN, TALL, WIDE), vision=replace(TOWER, longest=84)
    ),
    "an odd number of patches, squares of 3, quick GELU": Asked(
        f"is<image>{WORDS}<image>", (TALL, (40, 41)), TextSpec(biases=True),
        replace(TOWER, image_size=45, patch_size=5, merge=3, longest=90, use_gelu=False),
    ),
    "a longer side of a tile and a part": Asked("<image>is<image>", ((100, 56), (57, 100)), vision=replace(
        TOWER, longest=100)),
    "a longer side of one tile": Asked("<image>is<image>", (WIDE, SQUARE), vision=replace(TOWER, longest=28)),
    "no key of the longer side": Asked("<image>is<image>", (WIDE, (70, 98)), vision=replace(TOWER, longest=None)),
}  # fmt: skip


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(name: str) -> Case:
        asked, folder = CASES[name], tmp_path_factory.mktemp("pair")
        pair, rng = build_idefics3(folder, asked.text, asked.vision), np.random.default_rng(len(name))
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


def assert_pixels_equal(ours: Any, run: Run) -> None:
    for stage, array in run.stages.items():
        assert not stage.startswith(("image.", "vision.pixels")) or (ours[stage] == array).all(), stage


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("name", CASES)
def test_every_stage_of_transformers(case: Any, ran: Any, within: Any, name: str, backend: str) -> None:
    c, run, model = case(name), ran(name, "hf"), model_of(case(name), "hf", backend)
    ours = trace(model, c)
    assert tuple(model.raw_request(c.prompt, c.images).token_ids) == run.token_ids
    assert set(run.stages) == set(ours) and not differing(ours, run.stages, BOUND)
    assert_pixels_equal(ours, run)
    within(f"Idefics3, transformers, every stage, {backend}", worst(ours, run.stages), BOUND)
    logits = rel_rms(ours["result_output"], run.stages["result_output"])
    within(f"Idefics3, transformers, logits, {backend}", logits, BOUND)
    assert greedy(model, c) == run.greedy


def test_profile_llava_means_the_same(case: Any, ran: Any) -> None:
    name = "four of all shapes"
    ours, run = trace(model_of(case(name), "llava"), case(name)), ran(name, "hf")
    assert set(ours) == set(run.stages) and not differing(ours, run.stages, BOUND)


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("name", CASES)
def test_every_stage_of_llama_cpp(case: Any, ran: Any, within: Any, name: str, backend: str) -> None:
    c, run, model = case(name), ran(name, "llama.cpp"), model_of(case(name), "llama.cpp", backend)
    ours = trace(model, c)
    assert tuple(model.raw_request(c.prompt, c.images).token_ids) == run.token_ids
    assert set(run.stages) == {stage for stage in ours if not stage.startswith("image.seen")}
    pictures = {stage: array for stage, array in run.stages.items() if stage.startswith(OF_PICTURES)}
    assert not differing(ours, pictures, PICTURES)
    assert_pixels_equal(ours, run)
    logits = ours["result_output"], run.stages["result_output"]
    within(f"Idefics3, llama.cpp EXACT, image rows, {backend}", worst(ours, pictures), PICTURES)
    within(f"Idefics3, llama.cpp EXACT, end to end, logits, {backend}", rel_rms(*logits), WHOLE)
    within(f"Idefics3, llama.cpp EXACT, end to end, KL, {backend}", kl(*logits).max(), 5e-4)
    assert greedy(model, c) == run.greedy


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("name", CASES)
def test_the_decoder_of_llama_cpp_given_its_image_rows(
    case: Any, ran: Any, within: Any, name: str, backend: str
) -> None:
    run, model = ran(name, "llama.cpp"), model_of(case(name), "llama.cpp", backend)
    tiles = [array for stage, array in run.stages.items() if stage.partition("#")[0] == "projector.out"]
    logits, want = model.forward(list(parts(run.token_ids, tiles))), run.stages["result_output"]
    within(f"Idefics3, llama.cpp EXACT, logits, its image rows, {backend}", rel_rms(logits, want), 5e-6)
    within(f"Idefics3, llama.cpp EXACT, its image rows: max abs, {backend}", max_abs(logits, want), 2e-4)
    within(f"Idefics3, llama.cpp EXACT, its image rows: KL, {backend}", kl(logits, want).max(), 1e-9)


N_SIZES = 200


def random_sizes() -> list[tuple[int, int]]:
    """Draw widths and heights from 1 to 600, small as often as large; none thinner than llama.cpp can resize."""
    rng = np.random.default_rng(16)
    sizes = [tuple(int(n) for n in np.exp(rng.uniform(0, np.log(600), 2))) for _ in range(3 * N_SIZES)]
    return [size for size in sizes if max(size) < 28 * min(size)][:N_SIZES]  # type: ignore[misc]


@pytest.mark.parametrize("name", ["a wide one, as the template has it", "a longer side of a tile and a part"])
def test_tiles_from_the_size_alone_are_transformers(case: Any, name: str) -> None:
    c, sizes = case(name), random_sizes()
    vision = replace(settings.read_tower(llava_ref.gguf.read(c.mmproj)), longest=CASES[name].vision.longest)
    tiles: Any = model_of(c, "hf").tower
    assert [tiles.tiles.grid(*size) for size in sizes] == idefics3_prompt.n_tiles(sizes, vision)
    assert len(sizes) == N_SIZES


@pytest.mark.parametrize(
    "name", ["a longer side of a tile and a part", "a longer side of one tile", "no key of the longer side"]
)
def test_positions_from_the_size_alone_are_llama_cpp_s(case: Any, name: str) -> None:
    c, sizes = case(name), random_sizes()
    model = model_of(c, "llama.cpp")
    pictures = [np.zeros((height, width, 3), np.uint8) for width, height in sizes]
    found = [len(image.rows) for image in oracle.Oracle(c.text, c.mmproj, timeout=600).encode(pictures)]
    assert [model.span(*size).n_rows for size in sizes] == found


def test_a_strip_that_llama_cpp_cannot_resize_is_one_pixel_high_in_transformers(case: Any) -> None:
    name = "a wide one, as the template has it"
    strip = np.zeros((1, 300, 3), np.uint8)
    for profile in ("hf", "llama.cpp"):
        assert model_of(case(name), profile).preprocess(model_of(case(name), profile).decode_image(strip)).tiles
    with pytest.raises(oracle.OracleError):
        oracle.Oracle(case(name).text, case(name).mmproj).encode([strip])


Patch = pytest.MonkeyPatch


def shuffled(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Patch], None]:
    """Plant another order of the patches of a square: `change` of their numbers (m, s, m, s)."""

    def shuffle(x: Any, n: int, s: int) -> Any:
        m = n // s
        order = change(np.arange(n * n).reshape(m, s, m, s)).ravel()
        return x[order].reshape((m * m, -1))

    return lambda patch: patch.setattr(idefics3, "shuffle", shuffle)


def overview_first(patch: Patch) -> None:
    sound = NamedTiles.fitted
    patch.setattr(NamedTiles, "fitted", lambda self, rgb: [*sound(self, rgb)[-1:], *sound(self, rgb)[:-1]])


def overview_of_the_source(patch: Patch) -> None:
    def fitted(self: Any, rgb: Any) -> Any:
        return [*sound(self, rgb)[:-1], named_tiles.fit.stretch(rgb, self.side, LANCZOS)]

    sound = NamedTiles.fitted
    patch.setattr(NamedTiles, "fitted", fitted)


def changed_tower(change: Callable[[Any], Any]) -> Callable[[Patch], None]:
    sound = siglip.load_tower
    return lambda patch: patch.setattr(siglip, "load_tower", lambda *given: change(sound(*given)))


FAULTS: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "columns of a square before its lines": (
        "projector.shuffle", shuffled(lambda order: order.transpose(0, 2, 3, 1))
    ),
    "positions off by one": (
        "vision.pos_embd", changed_tower(lambda w: replace(w, position=np.roll(w.position, 1, axis=0)))
    ),
    "overview first": ("image.seen", overview_first),
    "overview of the source": ("image.seen#8", overview_of_the_source),
    "one step of the two resizes": ("image.seen", lambda patch: patch.setattr(
        NamedTiles, "sizes", lambda self, width, height: (self._filled(112, 36), self._filled(112, 36)))),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_at_its_stage(
    case: Any, ran: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    name = "a wide one, as the template has it"
    stage, plant = FAULTS[fault]
    plant(monkeypatch)
    bad = differing(trace(model_of(case(name), "hf"), case(name)), ran(name, "hf").stages, BOUND)
    assert bad and next(iter(bad)) == stage


def compared(case: Case, run: Any, **settings: str) -> Conformance:
    return conform(
        lambda changed: llava_ref.load(case.text, case.mmproj, backend="numpy", quirks=changed, **settings),  # type: ignore[arg-type]
        case,
        run,
    )


@pytest.mark.parametrize("reference", ["hf", "llama.cpp"])
def test_conform_in_its_profile_every_stage_agrees(case: Any, ran: Any, reference: str) -> None:
    for name in ("a wide one, as the template has it", "a longer side of one tile"):
        report = compared(case(name), ran(name, reference), profile=reference)
        assert report.same and not report.findings


@pytest.mark.parametrize(
    "name, stage, explained",
    [
        ("a tall one first, MHA, large eps", "vision.pixels", "resize_order=horizontal"),
        ("a longer side of a tile and a part", "vision.pixels", "tile_grid=sides"),
        ("a longer side of one tile", "vision.pixels#1", "lone_tile=both"),
        ("no key of the longer side", "vision.pixels", "longest_edge=own"),
    ],
)
def test_conform_names_each_difference(case: Any, ran: Any, name: str, stage: str, explained: str) -> None:
    report = compared(case(name), ran(name, "llama.cpp"), profile="hf")
    assert {finding.stage: finding.explained for finding in report.findings}[stage] == (explained,)


def test_a_conversation_is_rendered_as_the_processor_s_template_does(case: Any, ran: Any, tmp_path: Path) -> None:
    from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

    c = case("a wide one, as the template has it")
    content = [{"type": "image", "image": c.images[0].read_bytes()}, {"type": "text", "text": WORDS}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"},
                {"role": "user", "content": "what is"}]  # fmt: skip
    found = {}
    for template in (TEMPLATE, DEFAULT_CHAT_TEMPLATE):
        model = llava_ref.load(c.text, c.mmproj, backend="numpy", profile="hf", template=template)
        found[template] = model.request(messages)
    (ours, theirs) = found.values()
    assert ours.prompt.shown == theirs.prompt.shown and ours.token_ids == theirs.token_ids
    assert ours.prompt.shown.startswith(TURN.format(WORDS).removesuffix("\nAssistant:"))
    assert model.tokenizer.encode("<end_of_utterance>")[-1] in model.tokenizer.end_ids
