"""The measurement of a card, without one: a timer of our own, tiny sizes in the interpreter, processes that fail."""

import json
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
from llava_ref.benchmark.card import asking, models, peers, questions, report, whole
from llava_ref.benchmark.card.asking import CardQuestion, ask, ask_all, parsed
from llava_ref.benchmark.card.questions import Card
from llava_ref.benchmark.card.sizes import TINY
from llava_ref.benchmark.card.table import markdown
from llava_ref.benchmark.card.timing import Row, answered, copies, figures
from llava_ref.kernels import bench
from llava_ref.kernels.triton import matvec as matvec_module

S = TINY  # too narrow for any type with blocks of 256


class Counting:
    """Runs every launch once, and says that each took a millisecond, and a run two."""

    cache_bytes = 0

    def __init__(self):
        self.launched = 0

    def seconds(self, launches):
        for launch in launches:
            launch()
        self.launched += len(launches)
        return 1e-3

    def wall(self, run, times):
        run()
        self.launched += 1
        return 2e-3


@pytest.fixture
def card(monkeypatch):
    for name, value in {"LAYOUTS": ("Q8_0",), "COMPARED": ("Q8_0",), "FEW": (1, 3), "MANY": (9,)}.items():
        monkeypatch.setattr(questions, name, value)
    return Card(Counting(), S, "cpu")


def asked(question, card):
    rows = list(question(card))
    assert [row.problem for row in rows] == [None] * len(rows), [row.problem for row in rows if row.problem]
    return {row.what: row for row in rows}


def test_a_copy_counts_every_byte_twice(card):
    (row,) = asked(questions.copy, card).values()
    assert (row.seconds, row.n_bytes) == (1e-3, 2 * S.copy_bytes)


def test_every_type_is_multiplied_at_two_sizes(card):
    rows = asked(questions.matvec, card)
    sizes = [f"{N} x {S.width}" for N in (S.width, 2 * S.mlp)]
    assert [*rows] == [f"{kind}{rest}" for kind in ("Q8_0", "F16") for rest in (*(f" {s}" for s in sizes), ", launch")]
    padded = 1024  # columns of planes
    assert rows[f"Q8_0 {sizes[0]}"].n_bytes == S.width * (padded + padded // 16)
    assert rows[f"F16 {sizes[1]}"].n_bytes == 2 * S.mlp * S.width * 2
    assert card.timer.launched == 4


def test_the_cost_of_a_launch_is_what_bytes_leave_over():
    small, large = Row("matvec", "a", 5e-6, 1_000_000), Row("matvec", "b", 9e-6, 3_000_000)
    found = questions._launch_cost("Q4_K", small, large)
    assert found.seconds == pytest.approx(3e-6) and found.note == "500 GB/s between the two"
    assert "no longer" in questions._launch_cost("Q4_K", small, Row("matvec", "b", 5e-6, 3_000_000)).note
    failed = answered("matvec", "c", lambda: questions._launch_cost("Q4_K", small, Row("matvec", "b", problem="x")))
    assert failed.problem == "ValueError: one of the two was not measured"


def test_products_of_many_rows_have_their_operations(card):
    rows = asked(questions.prefill, card)
    assert len(rows) == 4 * 3
    row = rows[f"fused Q8_0 {2 * S.mlp} x {S.width}, {S.prompt} rows"]
    assert row.n_flops == 2 * S.prompt * 2 * S.mlp * S.width
    assert {what.split()[0] for what in rows} == {"float16", "fused", "unpacked"}


def test_every_number_of_rows_is_asked(card):
    rows = asked(questions.rows_of_x, card)
    assert [int(what.split()[-2]) for what in rows] == [1, 3, 9, 1, 3, 9]


def test_attention_of_a_prompt_a_picture_and_a_token(card):
    rows = asked(questions.attention, card)
    patches = (S.image // S.patch) ** 2 + 1
    assert rows[f"picture, {patches} rows"].n_flops == 4 * patches**2 * S.vision_width
    assert rows[f"prompt, {S.prompt} rows"].n_flops == 4 * S.prompt**2 * S.width // 2
    assert rows[f"one token, 2 over 2 heads, {S.context} before"].n_bytes == 2 * 2 * S.context * S.head_size * 2
    assert len(rows) == 6


def test_small_kernels(card):
    assert len(asked(questions.small, card)) == 2


def test_whole_models_run_at_the_given_sizes(card, monkeypatch):
    monkeypatch.setattr(whole, "PREFILLED", ("Q8_0", "F16"))
    monkeypatch.setattr(models, "MIXES", {name: models.MIXES[name] for name in ("Q8_0", "F16")})
    one, other = asked(whole.prompts, card).values()
    assert one.n_tokens == S.prompt and one.n_flops == other.n_flops == 2 * S.prompt * (4 * 64 * 64 + 3 * 64 * 160)
    (picture,) = asked(whole.picture, card).values()
    assert picture.what == "4 patches, 1 layers, projector"
    monkeypatch.setattr(models, "MIXES", {"F16": models.MIXES["F16"]})
    (step,) = asked(whole.steps, card).values()
    assert (step.what, step.n_tokens, step.seconds) == (f"F16, {S.context} before", 1, 2e-3)
    weights, cached = 4 * 64 * 64 + 3 * 64 * 160 + (35 + 1) * 64, (S.context + whole.TOKENS // 2) * 2 * 64
    assert step.n_bytes == 2 * (weights + cached) + 4 * 3 * 64


def test_the_mix_is_llama_cpp_s():
    """Of 32 layers the first four, the last four, and every third of those between: 16."""
    kinds = {name: [models.q4_k_m(name, i, 32) for i in range(32)] for name in ("v", "down", "q", "output")}
    assert [kinds[name].count("Q6_K") for name in kinds] == [16, 16, 0, 32]
    assert [i for i in range(8) if kinds["v"][i] == "Q6_K"] == [0, 1, 2, 3, 6]


def test_steps_that_differ_are_counted(card, monkeypatch):
    class Sequence:
        def next(self, parts):
            return np.array([0.0, next(answers)])

    answers = iter([0.0, 0.5, 9.0, 0.0, 0.5, 9.0, 0.0, 0.5, 9.0, 0.0, 1.0, 9.0])  # two steps, and one that is timed
    monkeypatch.setattr(whole, "DEPENDENT", "F16")
    monkeypatch.setattr(whole, "_behind_context", lambda *rest: Sequence())
    (row,) = asked(whole.dependent_launch, card).values()
    assert row.note == "2000.0 µs without; 2 steps: the same bits"
    (row,) = asked(whole.dependent_launch, card).values()
    assert row.note.endswith("**1 of 2 steps differ**")


def test_a_kernel_that_fails_is_a_row_and_the_rest_goes_on(card, monkeypatch):
    real = matvec_module.matvec

    def fails(x, w, *rest, **options):
        if w.type == "Q8_0":
            raise RuntimeError("out of registers\nand more")
        return real(x, w, *rest, **options)

    monkeypatch.setattr(matvec_module, "matvec", fails)
    rows = list(questions.matvec(card))
    bad = [row for row in rows if row.problem]
    assert len(rows) == 6 and [row.problem for row in bad[:2]] == ["RuntimeError: out of registers"] * 2
    assert all("Q8_0" in row.what for row in bad) and len(bad) == 3


def test_transformers_is_asked_the_same(card, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(peers, "TOKENS", 2)
    row = list(peers.transformers(card))[0]
    assert row.problem is None and row.n_tokens == 1
    weights = 4 * 64 * 64 + 3 * 64 * 160 + 35 * 64
    assert row.n_bytes == 2 * weights + 2 * S.context * 64 * 2


def test_copies_fill_the_cache_three_times():
    assert [copies(50_000_000, n) for n in (10_000_000, 49_000_000, 1 << 30)] == [15, 4, 1]


def test_figures_follow_from_time():
    row = figures(Row("q", "w", 2e-3, n_bytes=4_000_000_000, n_flops=10**12, n_tokens=3), 4000.0)
    assert row == {
        "question": "q", "what": "w", "us": 2000.0, "gb_s": 2000.0, "share_of_copy": 0.5, "tflop_s": 500.0,
        "tok_s": 1500.0,
    }  # fmt: skip
    assert figures(Row("q", "w", problem="bad"), 1.0) == {"question": "q", "what": "w", "problem": "bad"}
    assert figures(Row("q", "w", 1.0, n_bytes=10), None)["share_of_copy"] is None


def test_the_table_has_a_row_for_each():
    rows = [Row("copy", "memory", 1e-3, 4_000_000_000), Row("matvec", "Q4_K", 1e-3, 2_000_000_000, note="so | so")]
    found = report.answers([*rows, Row("step", "F16", problem="ended by SIGABRT")])
    assert found["copy_gb_s"] == 4000.0
    lines = markdown(found["rows"]).splitlines()
    assert lines[3] == "| matvec | Q4_K | 1000.0 | 2000 | 50% |  |  | so \\| so |"
    assert lines[4].endswith("| **failed**: ended by SIGABRT |") and len({line.count(" | ") for line in lines[:3]}) == 1


SCRIPT = """
import os, sys, time
row = '{"question": "%s", "what": "%s"}'
name = sys.argv[1]
print(row % (name, "first"), flush=True)
print("a library says hello", flush=True)
if name == "crash": os.abort()
if name == "hang": time.sleep(60)
if name == "error": raise SystemExit("it broke: badly")
print(row % (name, "second"), flush=True)
"""
COMMAND = (sys.executable, "-c", SCRIPT)


def test_a_question_is_a_process_of_its_own():
    found = ask(CardQuestion("fine", 30), end=1e9, command=COMMAND, clock=lambda: 0.0)
    assert [(row.what, row.problem) for row in found] == [("first", None), ("second", None)]


@pytest.mark.parametrize(
    "name, problem",
    [("crash", "ended by SIGABRT"), ("error", "it broke: badly"), ("hang", "stopped after 2 s")],
)
def test_a_process_that_fails_keeps_what_it_said(name, problem):
    first, rest = ask(CardQuestion(name, 2), end=1e9, command=COMMAND, clock=lambda: 0.0)
    assert (first.what, first.problem) == ("first", None)
    assert (rest.question, rest.what, rest.problem) == (name, "the rest", problem)


def test_all_are_asked_in_order_until_the_time_is_over():
    now = iter([0.0, *[10.0] * 3, 1e6])
    asks = [
        CardQuestion("slow", 30),
        CardQuestion("a", 30, together=True),
        CardQuestion("b", 30, together=True),
        CardQuestion("late", 30),
    ]
    found = list(ask_all(asks, COMMAND, lambda: next(now)))
    assert [row.question for row in found] == ["a", "a", "b", "b", "slow", "slow", "late"]
    assert found[-1].problem == "not asked: the time was over"


def test_rows_survive_the_pipe(capsys):
    rows = [Row("q", "µ", 1e-6, 3, 4, 5, "n"), Row("q", "w", problem="p")]
    asking.answer(iter(rows))
    assert list(parsed("noise\n{}\n[1]\n" + capsys.readouterr().out)) == rows


def test_the_result_is_a_table_and_a_last_line_of_json(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(
        report, "about", lambda: {"card": {"name": "C"}, "cuda": "13.0", "versions": {"torch": "2", "vllm": None}}
    )
    monkeypatch.setattr(report, "ask_all", lambda asked: iter([Row("copy", "memory", 1e-3, 10**9)]))
    report.write(report.measured(), str(tmp_path / "card.json"))
    out, err = capsys.readouterr()
    last = json.loads(out.splitlines()[-1])
    assert last == json.loads((tmp_path / "card.json").read_text()) and last["copy_gb_s"] == 1000.0
    assert out.startswith("name C; CUDA 13.0; torch 2; 0 s\n\n| question |") and "copy: memory" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so(capsys):
    assert bench.main(["-o", "nowhere.json"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and "no CUDA device" in err


def test_an_unknown_question_is_refused(capsys):
    assert bench.only("speed") == 2
    assert "unknown, expected one of selftest planes, " in capsys.readouterr().err


def test_a_card_is_asked_whether_its_kernels_are_right(card):
    from llava_ref.benchmark.card.catalogue import QUESTIONS

    (row,) = asked(QUESTIONS["selftest planes"], card).values()
    assert row.what == "kernel planes.pack, planes.unpack" and row.note == "12 cases, error 0.0e+00 of 0.0e+00"
    rows = asked(QUESTIONS["selftest scores"], card)
    assert rows["kernel scores.summarise"].note.startswith("9 cases, error ")


def test_what_is_right_is_asked_before_what_is_fast():
    from llava_ref.benchmark.card.catalogue import asked

    names = [one.name for one in asked()]
    checks = [one.name for one in asked() if one.together]
    assert names[: len(checks)] == checks and len(checks) == 10 and names[len(checks)] == "copy"
    wanted = ["matvec", "dependent launch", "products", "attention", "step", "prefill", "picture", "rows of x"]
    assert [name for name in names if name in wanted] == wanted
