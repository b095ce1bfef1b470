"""The HTML report: what it says, that it stands by itself, and that nothing in it can break out."""

import base64
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from llava_ref.conformance.compare.bounds import Bound
from llava_ref.conformance.compare.conform import Conformance, Deviation, StageResult
from llava_ref.conformance.compare.outcome import Disagreement, EndToEnd
from llava_ref.conformance.report import plot as report_plot
from llava_ref.conformance.report.page import SHOWN, render
from llava_ref.conformance.report.plot import HEIGHT, STAGES, kl_panels, stage_panels
from llava_ref.conformance.report.words import explanation, figure, grouped, share, verdict
from llava_ref.errors import ImageError
from llava_ref.models import clip, gemma3, llama, siglip
from llava_ref.profiles import QUIRKS
from llava_ref.tracing.distance import Distance

VOID = {"br", "img", "meta"}
IDS = (1, 17, -1, -1, -1, 5)


def stage(name, own=1e-7, whole=1e-4, limit=2e-6, problem=None, shapes=((5, 7), (5, 7)), measure="rel_rms"):
    own, whole = (None if x is None else Distance(x, x, 1 - x, (4, 2), (0, 3)) for x in (own, whole))
    return StageResult(name, "float", "Q8_0", shapes, own, whole, Bound(measure, limit), problem)


IDS_EQUAL = stage("token_ids", None, None, 0.0, None, ((6,), (6,)), "max_abs")
STAGES_OF = (
    stage("image.rgb", 0.0, 0.0, 1e-6, measure="max_abs"),
    stage("vision.pos_embd"),
    stage("vision.blk.0.Qcur", 3e-7),
    stage("vision.blk.1.Qcur", 0.0),
    stage("projector.out"),
    IDS_EQUAL,
    stage("embd", 0.0, 1e-4, 1e-6, measure="max_abs"),
    stage("blk.0.Qcur"),
    stage("blk.1.Qcur"),
    stage("result_output"),
)

TEXTS = {token: f"piece{token}" for token in range(-1, 3000)}
OUTCOME = EndToEnd((IDS, IDS), (0.0, 1e-9, 2e-7, 1e-6, 3e-6, 1e-7), 5e-4, 1.0, (8, 9, 2), (), 0.01, TEXTS)
SAME = Conformance(
    {"backend": "numpy", "precision": "exact", "profile": "llava", "quirks": {"gelu": "erf"}},
    "llama.cpp b10605",
    {
        "arithmetic": "ggml",
        "profile": "hf",
        "precision": "exact",
        "quirks": '{"gelu": "tanh"}',
        "text.gguf": "sha256:0123",
    },
    "USER: <image>\nWhich colour?",
    STAGES_OF,
    (),
    OUTCOME,
    tuple(row for table in (clip.TABLE, llama.TABLE) for row in table.run(2)),
)


def broken(*changed, explained=(), **fields):
    """SAME with these stages in the places of their namesakes, each a finding."""
    by_name = {s.name: s for s in changed}
    stages = tuple(by_name.get(s.name, s) for s in SAME.stages)
    findings = tuple(Deviation(s.name, 1, s.problem, explained) for s in changed)
    return replace(SAME, stages=stages, findings=findings, **fields)


OUT = stage("vision.pos_embd", 0.55, 0.55, problem="rel rms 0.55 over 2e-06")
EXPLAINED = broken(OUT, explained=("class_token=last",))
MISSING = broken(stage("vision.pos_embd", None, None, 2e-6, "the reference has no such stage", ((5, 7), None)))
EXTRA = broken(stage("vision.pos_embd", None, None, 0.0, "this run has no such stage", (None, (5, 7))))
SHAPE = broken(stage("vision.pos_embd", None, None, 2e-6, "shapes differ", ((5, 7), (4, 7))))
OTHER_IDS = broken(
    replace(IDS_EQUAL, problem="17 at position 1, the reference has 3", shapes=((6,), (7,))),
    explained=("text_pieces=whole",),
    outcome=replace(OUTCOME, token_ids=(IDS, (1, 3, 4, -1, -1, -1, 5)), kl=None, top_1=None),
)
INFINITE = broken(stage("blk.0.Qcur", math.inf, math.inf, problem="rel rms inf over 2e-06"))
WORSE = replace(
    SAME, outcome=replace(OUTCOME, greedy=(8, 9, 2), disagreements=(Disagreement(1, 77, 9, 0.4),), top_1=0.9996)
)
REPORTS = {
    "same": SAME, "explained": EXPLAINED, "unexplained": broken(OUT), "missing": MISSING, "extra": EXTRA,
    "shape": SHAPE, "ids": OTHER_IDS, "infinite": INFINITE, "worse": WORSE,
}  # fmt: skip


class Page(HTMLParser):
    """Checks that tags balance, and keeps what a test asks for."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag, **wanted):
        return [a for name, a in self.tags if name == tag and all(a.get(k) == v for k, v in wanted.items())]


def test_the_verdict_names_the_first_stage_and_the_reason():
    said = {name: verdict(report) for name, report in REPORTS.items()}
    assert [name for name, v in said.items() if v.same] == ["same"]
    assert said["same"].why == "All 10 stages that both have are within their bounds."
    assert said["explained"].headline == "Not the same: vision.pos_embd differs first"
    assert said["explained"].why == (
        "Relative RMS 0.55, allowed 2e-6. "
        "It vanishes with class_token=last: the reference puts the class token after the patches, so every patch has "
        "its neighbour's position; LLaVA-1.5 and 1.6 still take rows 1..N, so patch 0 is lost."
    )
    assert said["unexplained"].why.endswith("allowed 2e-6. No known quirks make it vanish.")
    assert said["missing"].headline.endswith("vision.pos_embd is missing from the reference")
    assert said["extra"].headline.endswith("vision.pos_embd is in the reference only")
    assert said["shape"].headline.endswith("vision.pos_embd has another shape")
    assert said["shape"].why.startswith("Shape 5 × 7 here, 4 × 7 in the reference.")
    assert said["ids"].headline.endswith("token_ids differ first")
    assert said["ids"].why.startswith("17 at position 1, the reference has 3. It vanishes with text_pieces=whole: ")
    assert said["infinite"].why.startswith("Relative RMS ∞, allowed 2e-6.")
    assert "only the cumulative error exceeds its bound" in said["worse"].headline


def test_the_outcome_in_words():
    assert verdict(SAME).outcome == (
        "Next-token KL is at most 3e-6 nats (position 4; 0.0005 allowed), the likeliest token is the same at 100 % of "
        "positions. All 3 greedy tokens agree."
    )
    assert (
        "at 99.9 % of positions. 2 of 3 greedy tokens agree; this run's own choice leads by up to 0.4 logits (0.01"
        in (verdict(WORSE).outcome)
    )
    assert verdict(OTHER_IDS).outcome.startswith("The token ids differ, so logits cannot be compared")
    gone = replace(SAME, outcome=replace(OUTCOME, kl=None, top_1=None, greedy=()))
    assert verdict(gone).outcome == "There are no logits to compare."
    bad = replace(SAME, outcome=replace(OUTCOME, kl=(0.1, math.nan, 0.2, 0.0, 0.0, 0.0)))
    assert "at most NaN nats (position 1;" in verdict(bad).outcome


def test_several_explanations_and_several_findings():
    two = broken(OUT, stage("blk.0.Qcur", 1.0, problem="out"), explained=("gelu=tanh", "post_ln=apply"))
    assert verdict(two).why.endswith("It vanishes with any one of gelu=tanh, post_ln=apply. 1 more finding below.")


@pytest.mark.parametrize("name, value", [(name, value) for name, row in QUIRKS.items() for value in row.values])
def test_every_quirk_is_explained_by_the_table(name, value):
    said = explanation(Deviation(OUT.name, 1, "out", (f"{name}={value}",)))
    assert said == f"It vanishes with {name}={value}: the reference {QUIRKS[name].values[value]}."


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_a_page_stands_by_itself(report):
    html = render(report, [])
    page = Page(html)
    names = [a["id"] for _, a in page.tags if "id" in a]
    assert len(names) == len(set(names))
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        assert not [name for name in attributes if name.startswith("on") or name in ("srcset", "action", "style")]
        for target in (attributes.get("href"), attributes.get("src"), attributes.get("xlink:href")):
            assert target is None or target.startswith("data:") or target[1:] in names, target
    assert "http" not in html.replace("http-equiv", "") and "url(" not in html and "@import" not in html
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert verdict(report).headline in page.text and verdict(report).outcome in page.text


def test_what_is_out_is_marked_by_more_than_colour():
    page = Page(render(EXPLAINED, []))
    (row,) = page.all("tr", **{"class": "out"})
    assert page.text.count("✗") == 2  # the verdict and the row
    assert page.all("a", href=f"#{row['id']}")  # from the finding and from the plot
    assert "--quirk class_token=last" in page.text
    assert "llama.cpp: node (ADD) · transformers: vision_tower.embeddings" in page.text
    assert "✓ The same" in Page(render(SAME, [])).text


def test_names_in_other_engines_are_those_of_the_models_own_family():
    stages = (*STAGES_OF, stage("blk.1.ffn_inp", 0.5, problem="out"))
    report = replace(SAME, stages=stages, findings=(Deviation("blk.1.ffn_inp", 1, "out", ()),))
    gemma = tuple(row for table in (siglip.TABLE, gemma3.TABLE) for row in table.run(2))
    names = {
        SAME.table: "llama.cpp: ffn_inp-1 · transformers: < language_model.layers.1.post_attention_layernorm ·",
        gemma: "llama.cpp: sa_out-1 · transformers: < language_model.layers.1.pre_feedforward_layernorm ·",
    }
    for table, text in names.items():
        assert text in Page(render(replace(report, table=table), [])).text
    assert "transformers:" not in Page(render(replace(report, table=()), [])).text


def test_an_unexplained_finding_says_how_to_look_and_where():
    report = broken(stage("blk.1.Qcur", 0.5, problem="out"))
    text = Page(render(report, [])).text
    assert "llava-ref trace --names 'blk.1.Qcur'" in text
    assert "first value over the bound at [0, 3], largest difference at [4, 2]" in text
    assert "language_model.layers.1.self_attn.q_proj" in text and "blk.1.attn_q.weight" in text


def test_the_same_fault_in_every_block_is_one_finding():
    bad = [replace(stage(f"blk.{i}.{what}", 1.0, problem="out")) for i in range(40) for what in ("Qcur", "kqv_out")]
    report = replace(SAME, stages=tuple(bad), findings=tuple(Deviation(s.name, 1, "out", ()) for s in bad))
    assert [len(group) for group in grouped(report.findings)] == [40, 40]
    assert verdict(report).why.endswith("1 more finding below.")
    page = Page(render(report, []))
    assert page.text.count("The same stage of other blocks") == 2
    assert len(page.all("a", title="blk.39.kqv_out: out", href="#s79")) == 1
    explained = tuple(replace(finding, explained=("gelu=tanh",)) for finding in report.findings)
    assert len(grouped(explained)) == 80


def test_many_findings_are_folded():
    bad = [stage(f"odd{i}", 1.0, problem="out") for i in range(SHOWN + 3)]
    report = replace(SAME, stages=tuple(bad), findings=tuple(Deviation(s.name, 1, "out", ()) for s in bad))
    page = Page(render(report, []))
    assert "3 more" in page.text and len(page.all("li", value=str(SHOWN + 3))) == 1


def test_hostile_text_is_text():
    evil = '</pre></script><script>alert(1)</script><img src=x onerror="a">\u202e\x07\ud800'
    report = broken(
        stage("blk.0.Qcur", None, None, problem=evil, shapes=(None, (2,))),
        prompt=f"a{evil}<image>b",
        reference=evil,
        about={evil: evil, "deep": "{" * 5000, "list": '{"a": [1, {"b": null}]}'},
    )
    html = render(report, [])
    page = Page(html)
    assert not page.all("script") and not page.all("img")
    assert "</pre></script><script>alert(1)</script>" in page.text
    assert "\\u202e\\x07\\ud800" in page.text
    html.encode("utf-8")


def test_settings_stand_side_by_side():
    page = Page(render(SAME, []))
    assert len(page.all("tr", **{"class": "differs"})) == 2  # profile, quirks.gelu
    assert "≠ profile llava hf" in page.text and "≠ quirks.gelu erf tanh" in page.text
    assert "text.gguf – sha256:0123" in page.text


def test_pictures_are_in_the_page(tmp_path):
    png, jpeg = tmp_path / 'a"><b>.png', tmp_path / "b.jpg"
    for path in (png, jpeg):
        Image.fromarray(np.full((9, 13, 3), 200, np.uint8)).save(path)
    page = Page(render(SAME, [png, jpeg]))
    first, second = page.all("img")
    kind, _, data = first["src"].partition(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data) == png.read_bytes()
    assert second["src"].startswith("data:image/jpeg;base64,") and first["alt"] == png.name
    assert "b.jpg, 13 × 9 JPEG" in page.text and not page.all("b", **{"class": "x"})
    with pytest.raises(ImageError):
        render(SAME, [tmp_path / "none.png"])


def test_token_ids_that_differ_are_marked():
    page = Page(render(OTHER_IDS, []))
    assert len(page.all("mark")) == 2
    assert "1 17 <image × 3> 5" in page.text and "1 3 4 <image × 3> 5" in page.text
    assert "positions cannot be compared" in page.text
    assert not page.all("g", **{"class": "col within"})  # no plot of KL


def test_greedy_tokens_with_margins():
    page = Page(render(WORSE, []))
    assert "piece9 9 ≠ piece77 77" in page.text and "✗ exceeds 0.01" in page.text
    small = replace(WORSE.outcome, disagreements=(Disagreement(1, 77, 9, 0.004),))
    text = Page(render(replace(SAME, outcome=small), [])).text
    assert "0.004 rounding" in text and "✗" not in text


def columns(panels):
    return {c.item.text.partition(":")[0]: c for panel in panels for c in panel.columns}


def test_marks_stand_where_their_values_say():
    (panel,) = stage_panels(EXPLAINED)
    at = columns([panel])
    assert list(at) == [s.name for s in EXPLAINED.stages]
    assert all(a.x < b.x for a, b in pairwise(panel.columns))
    assert at["vision.pos_embd"].y < at["vision.blk.0.Qcur"].y < at["blk.0.Qcur"].y < at["embd"].y  # down is smaller
    zero = next(tick for tick in panel.ticks if tick.text == "0")
    assert at["embd"].y == at["token_ids"].y == zero.y < panel.bottom
    ends = {tick.text: tick.y for tick in panel.ticks}
    assert ends["10⁻⁷"] - ends["1"] == pytest.approx(HEIGHT)
    assert [label.text for label in panel.flags] == ["1 vision.pos_embd"]
    assert [band.section for band in panel.bands] == ["picture", "tower", "projector", "decoder"]
    assert [group.text for group in panel.groups] == ["0", "1", "0", "1"]


def test_a_mark_crosses_the_bound_exactly_where_its_value_does():
    (panel,) = stage_panels(broken(stage("blk.0.Qcur", 2e-6), stage("blk.1.Qcur", 2.1e-6, problem="out")))
    level = float(re.search(r"M[\d.]+ ([\d.]+)H", panel.bound[panel.bound.index("M", 1) :])[1])
    at = columns([panel])
    assert at["blk.0.Qcur"].y == pytest.approx(level, abs=0.1) and at["blk.1.Qcur"].y < level - 0.3


def test_equal_bounds_are_one_line():
    (panel,) = stage_panels(SAME)  # 1e-6, four times 2e-6, none for token ids, 1e-6, three times 2e-6
    assert panel.bound.count("M") == 4 and panel.bound.count("H") == len(STAGES_OF) - 1


def test_labels_of_neighbours_stand_on_lines_of_their_own():
    (panel,) = stage_panels(broken(OUT, stage("vision.blk.0.Qcur", 0.1, problem="out")))
    first, second = panel.flags
    assert first.text.startswith("1 ") and second.text.startswith("2 ") and first.y < second.y < panel.top


def test_what_has_no_number_stands_on_the_shelf():
    for report, state in ((MISSING, "absent"), (SHAPE, "absent"), (EXTRA, "absent"), (OTHER_IDS, "absent")):
        (panel,) = stage_panels(report)
        column = columns([panel])[report.findings[0].stage]
        assert column.item.state == state and column.y < panel.top + report_plot.LEDGE
    (panel,) = stage_panels(INFINITE)
    column = columns([panel])["blk.0.Qcur"]
    assert column.item.state == "out" and column.y < panel.top + report_plot.LEDGE
    assert column.item.text == "blk.0.Qcur: local ∞, bound 2e-6, cumulative ∞"
    unasked = replace(SAME, stages=(*STAGES_OF, stage("image.seen", None, None, shapes=((3, 3, 3), None))))
    assert columns(stage_panels(unasked))["image.seen"].item.state == "unmeasured"
    page = Page(render(unasked, []))
    assert "3 × 3 × 3 Q8_0 not in the reference" in page.text and "✗" not in page.text
    assert "5 × 7 ≠ 4 × 7 Q8_0 shapes differ" in Page(render(SHAPE, [])).text
    assert not stage_panels(SAME)[0].ticks[0].text.startswith("∞")


def test_the_line_of_the_whole_way_breaks_where_there_is_none():
    (panel,) = stage_panels(SAME)
    assert panel.line.count("M") == 2 and panel.line.count("L") == len(STAGES_OF) - 3  # token_ids has none


def test_kl_by_position():
    report = replace(SAME, outcome=replace(OUTCOME, kl=(0.0, 1e-9, 2e-7, 0.6, math.nan, -1e-18)))
    (panel,) = kl_panels(report.outcome)
    assert [band.section for band in panel.bands] == ["text", "picture", "text"]
    assert [c.item.state for c in panel.columns] == ["within"] * 3 + ["out"] * 2 + ["within"]
    assert panel.columns[3].item.text == "position 3, picture: KL 0.6 nats, bound 0.0005"
    assert panel.columns[1].item.text.startswith("position 1, token 17:")
    assert panel.columns[5].y == panel.columns[0].y  # rounding below zero is zero
    page = Page(render(report, []))
    assert len(page.all("g", **{"class": "col out"})) == 2
    assert kl_panels(replace(OUTCOME, kl=())) == kl_panels(replace(OUTCOME, kl=None)) == []


def test_a_report_of_7b_stays_readable():
    tower = [stage(f"vision.blk.{i}.s{j}#{k}") for k in range(2) for i in range(23) for j in range(13)]
    stages = (*tower, IDS_EQUAL, *(stage(f"blk.{i}.s{j}") for i in range(32) for j in range(16)))
    ids = (1, *[-1] * 1152, *range(60))
    outcome = replace(OUTCOME, token_ids=(ids, ids), kl=(1e-5,) * len(ids))
    report = replace(SAME, stages=stages, outcome=outcome)
    panels = stage_panels(report)
    assert [c.item.text.partition(":")[0] for p in panels for c in p.columns] == [s.name for s in stages]
    assert len(panels) == math.ceil(len(stages) / STAGES) and all(panel.step > 3.5 for panel in panels)
    for before, after in pairwise(panels):
        a, b = before.columns[-1].item, after.columns[0].item
        assert (a.section, a.group) != (b.section, b.group)
    for panel in panels:
        ends = sorted((label.y, label.x, label.x + 6 * len(label.text)) for label in panel.labels)
        assert all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(ends))  # no label on another
    assert len(kl_panels(outcome)) == 2
    html = render(report, [])
    assert len(Page(html).all("svg")) == len(panels) + 2 + 5 and len(html) < 2e6


@pytest.mark.parametrize(
    "value, text",
    [(None, "–"), (math.nan, "NaN"), (math.inf, "∞"), (-math.inf, "−∞"), (0.0, "0"), (2e-6, "2e-6"), (239.4, "240"),
     (0.5512, "0.55"), (1.0, "1"), (3e-12, "3e-12"), (4.4e15, "4.4e15")],
)  # fmt: skip
def test_figures(value, text):
    assert figure(value) == text


def test_all_of_it_only_where_it_is_all():
    assert (share(1.0), share(0.99999), share(0.772)) == ("100 %", "99.9 %", "77.2 %")
