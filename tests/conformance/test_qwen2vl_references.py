"""The two references of Qwen2-VL and Qwen2.5-VL against each other, without this project's model: llama.cpp, settings
EXACT, and transformers in float32, each from the same files to its own tokens, pixels, rows and logits.

Pictures have sides of whole blocks, so that neither resizes. Bounds: ggml rounds pixels and kernels to float16 and
reads GELU from a table of float16, tanh where transformers has erf; its epsilon of the text's norms is 0.
`n_wa_pattern` 1 is in no case: llama.cpp b11549 aborts, because its mask of windows is used by no block.
"""

from dataclasses import replace
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
from llava_ref.conformance.engines.reference import ReferenceError, Run
from llava_ref.conformance.pairs.qwen2vl import QwenTextSpec, QwenVisionSpec
from llava_ref.tracing.distance import rel_rms

from .qwen2vl_cases import FAMILY, WHOLE_BLOCKS
from .reference_cases import EVERYTHING

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
ROWS, LOGITS, BEFORE_PICTURES = 1.2e-3, 2.5e-3, 1e-6


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return llama.cpp's run of a case and transformers', every stage."""

    @cache
    def run(name: str) -> tuple[Run, Run]:
        case = FAMILY.write(tmp_path_factory.mktemp("pair"), WHOLE_BLOCKS[name])
        llama, hf = (
            engine.run(case, n_greedy=8) for engine in (LlamaCpp(stages=EVERYTHING), Transformers(stages=EVERYTHING))
        )
        return llama, hf

    return run


@pytest.mark.parametrize("name", WHOLE_BLOCKS)
def test_both_show_the_same_tokens_and_stages(both: Any, name: str) -> None:
    llama, hf = both(name)
    assert llama.token_ids == hf.token_ids and llama.greedy == hf.greedy
    assert set(llama.stages) == {name for name in hf.stages if not name.startswith("image.seen")}
    for stage, array in llama.stages.items():
        assert hf.stages[stage].shape == array.shape and hf.stages[stage].dtype == array.dtype, stage
        if stage.startswith(("image.", "vision.pixels")):
            assert (hf.stages[stage] == array).all(), stage


@pytest.mark.parametrize("name", WHOLE_BLOCKS)
def test_every_stage_of_both(both: Any, within: Any, name: str) -> None:
    llama, hf = both(name)
    for stage, array in llama.stages.items():
        if not stage.startswith("image."):
            assert rel_rms(array, hf.stages[stage]) < LOGITS, stage
    for stage in (stage for stage in llama.stages if stage.startswith("projector.out")):
        within("Qwen2-VL: llama.cpp and transformers, image rows", rel_rms(llama.stages[stage], hf.stages[stage]), ROWS)
    logits = rel_rms(llama.stages["result_output"], hf.stages["result_output"])
    within("Qwen2-VL: llama.cpp and transformers, logits", logits, LOGITS)


def test_text_alone_agrees_to_the_last_bits(both: Any, within: Any) -> None:
    """No table and no rounding stands in the decoder's way; a text's positions are three times one."""
    llama, hf = both("text alone")
    for stage, array in llama.stages.items():
        within("Qwen2-VL: stages of text alone", rel_rms(array, hf.stages[stage]), 5 * BEFORE_PICTURES)


def test_a_text_file_alone_says_the_same(tmp_path: Path) -> None:
    """Without an mmproj transformers' model is Qwen2ForCausalLM."""
    beside = FAMILY.write(tmp_path, WHOLE_BLOCKS["text alone"])
    alone = replace(beside, mmproj=None)
    runs = [Transformers().run(case, n_greedy=4) for case in (alone, beside)]
    runs += [LlamaCpp().run(case, n_greedy=4) for case in (alone, beside)]
    assert len({run.token_ids for run in runs}) == len({run.greedy for run in runs}) == 1
    hf, with_tower, *_ = (run.stages["result_output"] for run in runs)
    assert rel_rms(hf, with_tower) < BEFORE_PICTURES


def test_greedy_does_not_say_one_thing_only(both: Any) -> None:
    """Equal tokens mean something only if they differ from prompt to prompt."""
    said = [both(name)[0].greedy for name in WHOLE_BLOCKS]
    assert len(set(said)) == len(WHOLE_BLOCKS) and len({token for tokens in said for token in tokens}) >= 20


SAID_OTHERWISE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rows and columns exchanged": ({"sections": (1, 3, 2, 0)}, {}),
    "time for rows": ({"sections": (2, 1, 3, 0)}, {}),
    "one position for all": ({"sections": (6, 0, 0, 0)}, {}),
    "the base": ({"rope_base": 1e5}, {}),
    "a window in another block": ({}, {"pattern": 3}),
    "windows in every block": ({}, {"pattern": 4}),
    "the tower's epsilon": ({}, {"eps": 0.05}),
}


@pytest.mark.parametrize("change", SAID_OTHERWISE)
def test_a_file_that_says_something_else_is_caught(both: Any, tmp_path: Path, change: str) -> None:
    """Every key that only this family has moves the logits of the same weights beyond the bound."""
    sent, (text, vision) = WHOLE_BLOCKS["2.5, four windows"], SAID_OTHERWISE[change]
    changed = replace(sent, text=QwenTextSpec(**text), vision=QwenVisionSpec(**vision))
    logits = LlamaCpp().run(FAMILY.write(tmp_path, changed)).stages["result_output"]
    assert rel_rms(logits, both("2.5, four windows")[1].stages["result_output"]) > 4 * LOGITS


def test_llama_cpp_reads_no_epsilon_of_the_text(tmp_path: Path) -> None:
    """Its logits are those of epsilon 0, transformers' those of the file's."""
    sent = WHOLE_BLOCKS["text alone"]
    folders = [tmp_path / "large", tmp_path / "none"]
    cases = []
    for folder, eps in zip(folders, (0.05, 0.0), strict=True):
        folder.mkdir()
        cases.append(FAMILY.write(folder, replace(sent, text=QwenTextSpec(eps=eps))))
    llama, other = (LlamaCpp().run(case).stages["result_output"] for case in cases)
    large, none = (Transformers().run(case).stages["result_output"] for case in cases)
    assert (llama == other).all()
    assert rel_rms(llama, none) < 5 * BEFORE_PICTURES and rel_rms(llama, large) > 1e-2


def test_rows_fed_with_their_grid_are_the_prompt(both: Any, tmp_path: Path) -> None:
    """`Oracle.logits` takes rows (y, x, D) with the positions that mtmd gives them, and refuses rows without a grid."""
    name = "2.5, four windows"
    llama, _ = both(name)
    case = FAMILY.write(tmp_path, WHOLE_BLOCKS[name])
    rows, ids = llama.stages["projector.out"], np.array(llama.token_ids)
    first, last = np.flatnonzero(ids == -1)[[0, -1]]
    asked = oracle.Oracle(case.text, case.mmproj)
    (answer,) = asked.logits([[ids[:first], rows.reshape(5, 7, -1), ids[last + 1 :]]], greedy=8)
    assert (answer.logits == llama.stages["result_output"]).all() and answer.tokens == llama.greedy
    with pytest.raises(oracle.OracleError, match="rows without a grid"):
        asked.logits([[rows]])


def test_both_letterbox_and_stretch(tmp_path: Path) -> None:
    """A picture of another shape than whole blocks: transformers stretches it, llama.cpp centres it on black."""
    case = FAMILY.write(tmp_path, WHOLE_BLOCKS["2"])
    Image.fromarray(np.full((75, 200, 3), 255, np.uint8)).save(case.images[0])
    llama, hf = LlamaCpp().run(case).stages["vision.pixels"], Transformers().run(case).stages["vision.pixels"]
    assert llama.shape == hf.shape == (3, 84, 196)
    assert len(np.unique(hf)) == 3 and len(np.unique(llama)) == 6


def test_the_processor_counts_rows_from_sizes_as_from_pictures(tmp_path: Path) -> None:
    from llava_ref.conformance.engines.hf import from_gguf, qwen2vl_prompt

    case = FAMILY.write(tmp_path, WHOLE_BLOCKS["2"])
    vision = from_gguf.load(case.text, case.mmproj).vision
    assert vision is not None
    rng = np.random.default_rng(5)
    sizes = [(int(w), int(h)) for w, h in rng.integers(1, 300, (20, 2)) if max(w, h) <= 200 * min(w, h)]
    patches, seen = qwen2vl_prompt.preprocess([Image.new("RGB", size) for size in sizes], vision)
    counted = qwen2vl_prompt.grids(sizes, vision)
    assert counted == [(int(rows) // 2, int(columns) // 2) for _, rows, columns in patches.grids]
    assert [picture.shape for picture in seen] == [(28 * rows, 28 * columns, 3) for rows, columns in counted]


def test_a_vocabulary_without_the_picture_token_is_refused_by_name(tmp_path: Path) -> None:
    case = FAMILY.write(tmp_path, WHOLE_BLOCKS["2"])
    case.text.write_bytes(case.text.read_bytes().replace(b"<|image_pad|>", b"<|IMAGE_PAD|>"))
    with pytest.raises(ReferenceError, match=r"has no <\|image_pad\|>, the processor's image token"):
        Transformers().run(case)
