"""The two references of Gemma 3 against each other, without this project's model: llama.cpp, settings EXACT, and
transformers in float32, on the same random pairs, the same pixels and the same token ids.

Bounds: ggml rounds pixels, the patch kernel and the projection to float16 and reads GELU from a table of float16.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.engines.reference import Case, ReferenceError
from llava_ref.conformance.pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3
from llava_ref.conformance.pairs.gemma3_vocabulary import gemma_vocabulary
from llava_ref.conformance.pairs.pairs import Pair
from llava_ref.tracing.distance import rel_rms

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
ROWS, LOGITS, BEFORE_GELU = 1e-3, 2e-3, 1e-6
VARIANTS = {
    "GQA": (Gemma3Spec(), SiglipSpec()),
    "MQA, linear": (Gemma3Spec(n_head_kv=1, rope_factor=8.0), SiglipSpec(swapped=True)),
    "MHA, another base": (Gemma3Spec(n_head_kv=4, rope_base_swa=500.0, window=5), SiglipSpec(patch_size=21)),
    "large eps, merge 4": (Gemma3Spec(eps=0.05), SiglipSpec(eps=0.05, merge=4, image_size=112)),
    "large heads, odd window": (Gemma3Spec(head_size=34, window=3), SiglipSpec(n_head=2)),
    "no window": (Gemma3Spec(window=None, n_layer=3), SiglipSpec(use_gelu=False)),
    "every third layer full": (Gemma3Spec(pattern=3, n_layer=4), SiglipSpec(n_block=1)),
    "window as long as a picture": (Gemma3Spec(window=9), SiglipSpec()),
}
PICTURE = "picture"
TOKENS: list[str] = gemma_vocabulary()["tokenizer.ggml.tokens"]  # type: ignore[assignment]
PROMPTS: dict[str, tuple[Any, ...]] = {
    "text": ([2, *range(300, 330)],),
    "picture in the middle": ([2, 300, 301], PICTURE, [302, 303, 304, 305]),
    "picture first": (PICTURE, [302, 303]),
    "picture last": ([2, *range(300, 320)], PICTURE),
    "two pictures": ([2, 310], PICTURE, [311], PICTURE, [312, 313]),
}


@dataclass(frozen=True)
class Both:
    """A pair, a picture as both engines see it, and the answers of both to the picture and to every prompt."""

    pair: Pair
    pixels: tuple[np.ndarray, np.ndarray]  # llama.cpp, transformers
    rows: tuple[np.ndarray, np.ndarray]
    logits: dict[str, tuple[np.ndarray, np.ndarray]]
    tokens: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


def square(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8)


def of_transformers(pair: Pair, prompts: Sequence[Sequence[Any]], rgb: np.ndarray) -> list[Any]:
    """Return pixels, rows, then logits and greedy tokens of each prompt."""
    from llava_ref.conformance.engines.hf import from_gguf, gemma3_prompt

    model = from_gguf.load(pair.text, pair.mmproj)
    assert model.vision is not None
    pixels, _ = gemma3_prompt.preprocess([Image.fromarray(rgb)], model.vision)
    found: list[Any] = [pixels[0], model.image_rows(pixels)[0]]
    for prompt in prompts:
        image = [model.image_token] * model.vision.n_rows
        ids = [token for part in prompt for token in (image if part is PICTURE else part)]
        count = sum(part is PICTURE for part in prompt)
        output = model.forward(ids, np.repeat(pixels, count, 0) if count else None)
        found.append((output.logits[0].numpy(), model.greedy(output, 8)))
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(name: str) -> Both:
        text, vision = VARIANTS[name]
        pair, rgb = build_gemma3(tmp_path_factory.mktemp("pair"), text, vision), square(vision.image_size)
        llama = oracle.Oracle(pair.text, pair.mmproj)
        (image,) = llama.encode([rgb])
        prompts = [[image.rows if part is PICTURE else part for part in prompt] for prompt in PROMPTS.values()]
        answers = llama.logits(prompts, greedy=8)
        pixels, rows, *found = of_transformers(pair, list(PROMPTS.values()), rgb)
        pairs = list(zip(PROMPTS, answers, found, strict=True))
        return Both(
            pair,
            (image.pixels, pixels),
            (image.rows, rows),
            {name: (theirs.logits, hf[0]) for name, theirs, hf in pairs},
            {name: (theirs.tokens, hf[1]) for name, theirs, hf in pairs},
        )

    return make


@pytest.mark.parametrize("name", VARIANTS)
def test_pixels_are_the_same_bits(both: Any, name: str) -> None:
    ours, theirs = both(name).pixels
    assert (ours == theirs).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_image_rows(both: Any, within: Any, name: str) -> None:
    within("Gemma 3: llama.cpp and transformers, image rows", rel_rms(*both(name).rows), ROWS)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_greedy_tokens(both: Any, within: Any, name: str, prompt: str) -> None:
    found = both(name)
    within("Gemma 3: llama.cpp and transformers, logits", rel_rms(*found.logits[prompt]), LOGITS)
    assert found.tokens[prompt][0] == found.tokens[prompt][1]


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_does_not_say_one_thing_only(both: Any, name: str) -> None:
    """Equal tokens mean something only if they differ from prompt to prompt."""
    said = [tokens for tokens, _ in both(name).tokens.values()]
    assert len(set(said)) == len(PROMPTS) and len({token for tokens in said for token in tokens}) >= 10


SAID_OTHERWISE = {
    "window one longer": {"window": 8},
    "no window": {"window": None},
    "every layer full but one": {"pattern": 2},
    "one base for all": {"rope_base_swa": 1e6},
    "base of full layers": {"rope_base": 1e5},
    "a factor": {"rope_factor": 8.0},
    "eps": {"eps": 0.05},
}


@pytest.mark.parametrize("change", SAID_OTHERWISE)
def test_a_file_that_says_something_else_is_caught(both: Any, tmp_path: Path, change: str) -> None:
    """Every key of the decoder moves the logits of the same weights beyond the bound."""
    text, vision = VARIANTS["GQA"]
    changed = build_gemma3(tmp_path, replace(text, **SAID_OTHERWISE[change]), vision)
    (answer,) = oracle.Oracle(changed.text).logits([PROMPTS["text"]])
    assert rel_rms(answer.logits, both("GQA").logits["text"][1]) > LOGITS


def test_rows_that_do_not_see_the_rest_of_their_picture_are_caught(both: Any) -> None:
    found = both("GQA")
    prompt = [found.rows[0] if part is PICTURE else part for part in PROMPTS["picture in the middle"]]
    (causal,) = oracle.Oracle(found.pair.text).logits([prompt])  # without mtmd, which says how rows see one another
    assert rel_rms(causal.logits, found.logits["picture in the middle"][1]) > 50 * LOGITS


EVERY = ("*", "*kq_soft_max")
FIRST_TABLE = ("blk.0.ffn_geglu", "vision.patch_embd")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run two prompts by both adapters, every stage: text, and one square picture."""
    folder = tmp_path_factory.mktemp("stages")
    pair = build_gemma3(folder, Gemma3Spec(rope_factor=8.0), SiglipSpec())
    Image.fromarray(square(84)).save(folder / "square.png")
    text = Case(pair.text, pair.mmproj, (), "what is the color of a large small red circle")
    picture = Case(pair.text, pair.mmproj, (folder / "square.png",), "a<image>b")
    return {case.prompt: [engine.run(case) for engine in (LlamaCpp(stages=EVERY), Transformers(stages=EVERY))]
            for case in (text, picture)}  # fmt: skip


def test_both_adapters_show_the_same_stages(stages: Any) -> None:
    for llama, hf in stages.values():
        assert [name for name in hf.stages if not name.startswith("image.seen")] == list(llama.stages)
        assert all(hf.stages[name].dtype == array.dtype for name, array in llama.stages.items())


def test_stages_before_the_first_table_agree_to_the_last_bits(stages: Any, within: Any) -> None:
    """Up to the first GELU, ggml computes the text in float32."""
    (llama, hf), *_ = stages.values()
    names = list(llama.stages)
    for name in names[: names.index("blk.0.ffn_geglu")]:
        within("Gemma 3: stages before the first GELU", rel_rms(llama.stages[name], hf.stages[name]), BEFORE_GELU)
    for name in names:
        assert rel_rms(llama.stages[name], hf.stages[name]) < LOGITS, name


def test_stages_of_a_picture_agree(stages: Any) -> None:
    _, (llama, hf) = stages.values()
    names = [name for name in llama.stages if name.startswith(("vision.", "projector."))]
    assert len(names) > 40
    for name in names:
        assert rel_rms(llama.stages[name], hf.stages[name]) < LOGITS, name


def test_a_text_file_alone_says_the_same(both: Any) -> None:
    """Without an mmproj transformers' model is Gemma3ForCausalLM."""
    pair, prompt = both("GQA").pair, "what is\n\nthe color"
    alone, beside = (
        Transformers().run(Case(pair.text, mmproj, (), prompt), n_greedy=4) for mmproj in (None, pair.mmproj)
    )
    assert alone.token_ids == beside.token_ids and alone.greedy == beside.greedy
    assert (alone.stages["result_output"] == beside.stages["result_output"]).all()
    llama = LlamaCpp().run(Case(pair.text, None, (), prompt), n_greedy=4)
    assert llama.token_ids == alone.token_ids and llama.greedy == alone.greedy


def test_no_two_stages_could_be_exchanged_unseen(stages: Any) -> None:
    (llama, _), *_ = stages.values()
    arrays = list(llama.stages.items())
    alike = [
        (a, b) for i, (a, x) in enumerate(arrays) for b, y in arrays[i + 1 :]
        if x.shape == y.shape and rel_rms(x, y) <= 2 * LOGITS
    ]  # fmt: skip
    assert not alike


def test_the_processor_puts_line_feeds_around_the_markers_and_llama_cpp_none(stages: Any) -> None:
    _, (llama, hf) = stages.values()
    start, end, two = (TOKENS.index(text) for text in ("<start_of_image>", "<end_of_image>", "\n\n"))
    tokens = llama.token_ids
    first = tokens.index(-1)
    assert tokens[first - 1] == start and tokens[first + 9] == end and tokens.count(-1) == 9
    at = hf.token_ids.index(-1)
    assert hf.token_ids[at - 2 : at] == (two, start) and hf.token_ids[at + 9 : at + 11] == (end, two)
    assert tuple(token for token in hf.token_ids if token != two) == tokens


@pytest.mark.parametrize("shape", [(40, 84), (120, 50), (1, 9)])
def test_a_picture_that_is_not_square_is_stretched_by_one_and_letterboxed_by_the_other(
    both: Any, shape: tuple[int, int]
) -> None:
    pair, rgb = both("GQA").pair, np.full((*shape, 3), 255, np.uint8)
    (image,) = oracle.Oracle(pair.text, pair.mmproj).encode([rgb])
    pixels, _, *_ = of_transformers(pair, [], rgb)
    assert (pixels == 1).all() and (image.pixels == -1).any() and image.pixels.max() == 1


def test_a_vocabulary_without_the_picture_tokens_is_refused_by_name(tmp_path: Path) -> None:
    pair = build_gemma3(tmp_path, Gemma3Spec(n_layer=1), SiglipSpec())
    data = pair.text.read_bytes()
    pair.text.write_bytes(data.replace(b"<end_of_image>", b"<END_OF_IMAGE>"))
    Image.fromarray(square(84)).save(tmp_path / "a.png")
    with pytest.raises(ReferenceError, match="has no <end_of_image>, the processor's eoi_token"):
        Transformers().run(Case(pair.text, pair.mmproj, (tmp_path / "a.png",), "<image>"))
