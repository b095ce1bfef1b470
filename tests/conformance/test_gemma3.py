"""Gemma 3 against transformers (profile hf) and against llama.cpp (settings EXACT), stage by stage, on random pairs.

llama.cpp reads the GELU of the text's MLP from a table of float16: `TABLE` bounds the difference that this alone makes
from exact arithmetic. Precision ggml rounds as it does, but a sum in another order may still reach another entry.
"""

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3
from llava_ref.generation.sampling import Sampling
from llava_ref.generation.session import Session
from llava_ref.loading import load
from llava_ref.model import Llava
from llava_ref.tracing.distance import kl, max_abs, rel_rms

from .family_stages import BACKENDS, DECODER, Asked, Family, WholePictureStages, fed_parts, of_pictures
from .reference_cases import EVERYTHING, differing, model_of, worst

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
TABLE = 1e-3
SQUARE, WIDE, TALL = (84, 84), (131, 40), (37, 112)  # width, height
WORDS = "what is the color of a large small red circle and how many blue"
GGML = {"kv_cache": "f32", "flash_attention": "off"}
CASES = {
    "text alone, window of 7": Asked(WORDS + "\n\n\n  \n" + WORDS),
    "GQA, a square picture in the middle": Asked(f"{WORDS} <image> {WORDS}", (SQUARE,)),
    "MQA, linear factor, a wide one first": Asked(
        f"<image>{WORDS}", (WIDE,), Gemma3Spec(n_head_kv=1, rope_factor=8.0, rope_base_swa=500.0)
    ),
    "MHA, odd window, a tall one last": Asked(
        f"{WORDS}<image>", (TALL,), Gemma3Spec(n_head_kv=4, window=3), SiglipSpec(patch_size=21, swapped=True)
    ),
    "large eps, merge 4, three pictures": Asked(
        "<image>\n<image>the color<image>",
        (TALL, SQUARE, WIDE),
        Gemma3Spec(eps=0.05),
        SiglipSpec(eps=0.05, merge=4, image_size=112),
    ),
    "no window, quick GELU, heads wider than the model": Asked(
        f"a<image>\n{WORDS}<image> of", (WIDE, WIDE), Gemma3Spec(window=None, n_layer=3, head_size=34),
        SiglipSpec(use_gelu=False, n_head=2),
    ),
    "line feeds at the pictures, as a template puts them": Asked(
        "<start_of_turn>user\n<image>\n\n<image>x\n\n\n<image>\n", (WIDE, SQUARE, TALL)
    ),
    "pictures of 256 rows, a long text": Asked(
        f"{WORDS * 9}<image>\n{WORDS * 4}<image>{WORDS * 5}",
        (WIDE, TALL),
        Gemma3Spec(window=100, context=2048),
        SiglipSpec(image_size=224, merge=1),
    ),
    "every third layer full, window of a picture": Asked(
        f"the<image>{WORDS}", (SQUARE,), Gemma3Spec(n_layer=4, pattern=3, window=9), SiglipSpec(n_block=1)
    ),
}  # fmt: skip
FAMILY = Family("Gemma 3", build_gemma3, CASES, Gemma3Spec(), SiglipSpec())


class TestStages(WholePictureStages):
    @BACKENDS
    def test_the_decoder_of_llama_cpp_given_its_image_rows(
        self, case: Any, ran: Any, within: Any, name: str, backend: str
    ) -> None:
        """Up to the first table; behind it, noise of the table's steps."""
        run, model = ran(name, "llama.cpp"), model_of(case(name), "llama.cpp", backend)
        with model.trace(*EVERYTHING) as fed:
            model.forward(fed_parts(run, model))
        wanted = of_pictures(run.stages, False)
        before = {stage: array for stage, array in wanted.items() if stage.startswith("blk.0.") or stage == "embd"}
        before = dict(list(before.items())[: list(before).index("blk.0.ffn_geglu")])
        assert not differing(fed, before, DECODER) and len(before) > 12
        within(f"Gemma 3, llama.cpp EXACT, before the first table, {backend}", worst(fed, before), DECODER)
        logits = rel_rms(fed["result_output"], wanted["result_output"])
        within(f"Gemma 3, llama.cpp EXACT, logits, its image rows, {backend}", logits, TABLE)


SHORT = [[2, 300, 301, 302], [2, 310, 311], [2, 320, 321, 322, 323], [2, 330]]


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_precision_ggml_follows_the_table(tmp_path: Path, within: Any, backend: str) -> None:
    """In the best of some short prompts no sum in another order reaches another entry of the table: there this decoder
    is llama.cpp's. In precision exact every prompt is far from it."""
    pair = build_gemma3(tmp_path, Gemma3Spec(n_layer=2, window=3, pattern=2, rope_factor=8.0), SiglipSpec())
    c, llama = Case(pair.text, pair.mmproj, (), ""), oracle.Oracle(pair.text, pair.mmproj)
    exact = model_of(c, "llama.cpp", backend)
    ours = load(c.text, c.mmproj, backend=backend, threads=1, profile="llama.cpp", precision="ggml", quirks=GGML)
    rows = llama.encode([np.random.default_rng(1).integers(0, 256, (84, 84, 3), np.uint8)])[0].rows
    prompts: list[list[Any]] = [[ids, rows, [305]] for ids in SHORT] + [[rows, ids] for ids in SHORT]
    answers = [answer.logits for answer in llama.logits(prompts)]
    found = [ours.forward(prompt) for prompt in prompts]
    best = min(range(len(prompts)), key=lambda i: rel_rms(found[i], answers[i]))
    what = f"Gemma 3, llama.cpp EXACT, precision ggml, {backend}"
    within(f"{what}, the best prompt", rel_rms(found[best], answers[best]), 5e-6)
    within(f"{what}, the best prompt: max abs", max_abs(found[best], answers[best]), 2e-4)
    within(f"{what}, the best prompt: KL", kl(found[best], answers[best]).max(), 1e-9)
    within(f"{what}, the worst prompt", max(map(rel_rms, found, answers)), 1e-4)
    assert min(rel_rms(exact.forward(p), answer) for p, answer in zip(prompts, answers, strict=True)) > 1e-4


def test_the_scale_of_62_layers_is_another(tmp_path: Path) -> None:
    """llama.cpp knows the 27B by its layers. The table's noise grows with depth; a wrong scale is far beyond it."""
    spec = Gemma3Spec(n_layer=62, width=24, n_head=2, n_head_kv=1, mlp_width=20)
    pair, prompt = build_gemma3(tmp_path, spec, SiglipSpec(n_block=1)), [[2, *range(300, 325)]]
    (answer,) = oracle.Oracle(pair.text).logits([prompt])
    model = model_of(Case(pair.text, pair.mmproj, (), ""), "llama.cpp")
    assert rel_rms(model.forward(prompt), answer.logits) < 2e-2
    settings: Any = model.text
    wrong = replace(settings.settings, text=replace(settings.config, attention_scale=10**-0.5))
    assert rel_rms(load_with(model, wrong).feed(prompt, all_logits=True), answer.logits) > 0.3


def load_with(model: Llava, settings: Any) -> Session:
    """Begin a sequence of the same weights with other settings."""
    text: Any = model.text
    return Session(replace(text, settings=settings))


def test_an_answer_to_a_conversation(case: Any, ran: Any) -> None:
    """A conversation becomes the prompt that Gemma 3's format asks for, and `<end_of_turn>` ends an answer."""
    c = case("GQA, a square picture in the middle")
    model = model_of(c, "hf")
    url = f"data:image/png;base64,{base64.b64encode(c.images[0].read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is"}]
    messages = [{"role": "system", "content": "the color"}, {"role": "user", "content": content}]
    request = model.request(messages)
    rendered = "<bos><start_of_turn>user\nthe color\n\n<image>what is<end_of_turn>\n<start_of_turn>model\n"
    run = Transformers(stages=["result_output"]).run(replace(c, prompt=rendered), n_greedy=1)
    assert tuple(request.token_ids) == run.token_ids
    reply = model.answer(request, Sampling(), max_tokens=1).finish()
    assert tuple(reply.token_ids) == run.greedy
    assert model.tokenizer.encode("<end_of_turn>")[-1] in model.tokenizer.end_ids
