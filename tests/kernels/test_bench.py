"""The measurement of a card, without one: a timer of our own, tiny sizes in the interpreter, processes that fail."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
from llava_ref.benchmark.card import asking, peers, questions, report, whole
from llava_ref.benchmark.card.asking import Asked, ask, ask_all, parsed
from llava_ref.benchmark.card.questions import Card
from llava_ref.benchmark.card.sizes import TINY
from llava_ref.benchmark.card.table import markdown
from llava_ref.benchmark.card.timing import Row, answered, copies, figures
from llava_ref.kernels import bench
from llava_ref.kernels.triton import matvec as matvec_module

S = replace(TINY, width=64, mlp=160, heads=2, head_size=32)  # Q8_0 only
T = TINY


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


@pytest.fixture
def whole_card(card, monkeypatch):
    monkeypatch.setattr(whole, "TOKENS", 2)
    monkeypatch.setattr(whole, "PREFILLED", ("Q4_K_M",))
    return Card(card.timer, TINY, "cpu")


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


def test_whole_models_run_at_the_given_sizes(whole_card):
    rows = asked(whole.steps, whole_card)
    assert [*rows] == [f"{mix}, {T.context} before" for mix in ("Q4_K_M", "Q8_0", "F16")]
    assert all(row.n_tokens == 1 and row.seconds == 2e-3 for row in rows.values())
    by_mix = [row.n_bytes for row in rows.values()]
    assert by_mix == sorted(by_mix) and by_mix[2] > 2 * (T.vocabulary + 7 * T.width) * T.width
    (prompt,) = asked(whole.prompts, whole_card).values()
    assert prompt.n_tokens == T.prompt and prompt.n_flops > 0
    (picture,) = asked(whole.picture, whole_card).values()
    assert picture.what == "4 patches, 1 layers, projector"


def test_steps_that_differ_are_counted(whole_card, monkeypatch):
    monkeypatch.setattr(whole, "TOKENS", 1)
    (row,) = asked(whole.dependent_launch, whole_card).values()
    assert row.note == "2000.0 µs without; 2 steps: the same bits"
    answers = iter([0.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    monkeypatch.setattr(whole.Session, "next", lambda self, parts: np.array([0.0, next(answers)]))
    (row,) = asked(whole.dependent_launch, whole_card).values()
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
    weights = 4 * 64 * 64 + 3 * 64 * 160 + 70 * 64
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
    found = ask(Asked("fine", 30), end=1e9, command=COMMAND, clock=lambda: 0.0)
    assert [(row.what, row.problem) for row in found] == [("first", None), ("second", None)]


@pytest.mark.parametrize(
    "name, problem",
    [("crash", "ended by SIGABRT"), ("error", "it broke: badly"), ("hang", "stopped after 2 s")],
)
def test_a_process_that_fails_keeps_what_it_said(name, problem):
    first, rest = ask(Asked(name, 2), end=1e9, command=COMMAND, clock=lambda: 0.0)
    assert (first.what, first.problem) == ("first", None)
    assert (rest.question, rest.what, rest.problem) == (name, "the rest", problem)


def test_all_are_asked_in_order_until_the_time_is_over():
    now = iter([0.0, *[10.0] * 3, 1e6])
    asks = [Asked("slow", 30), Asked("a", 30, together=True), Asked("b", 30, together=True), Asked("late", 30)]
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


def test_what_is_right_is_asked_before_what_is_fast():
    from llava_ref.benchmark.card.catalogue import asked

    names = [one.name for one in asked()]
    checks = [one.name for one in asked() if one.together]
    assert names[: len(checks)] == checks and len(checks) == 10 and names[len(checks)] == "copy"
    wanted = ["matvec", "dependent launch", "products", "attention", "step", "prefill", "picture"]
    assert [name for name in names if name in wanted] == wanted
