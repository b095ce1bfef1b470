"""Put a quality report into sentences and tables for a terminal."""

from collections.abc import Sequence

from .behaviour import Spread, spread
from .ranking import RaisedTensors
from .report import FileSize, QualityReport, same_answer
from .tensors import TensorError

TENSORS = "relRMS, max abs: of the weights; product: relRMS of the matrix product with the reference's inputs"
LAYERS = "relRMS of the layer's output; adds: from the reference's input; carries: accumulated over the pair's own pass"
CASES = "worst row: smallest cosine of an image row; KL: of the answer's tokens, in nats"
RANKING = """KL: of the reference with this one quantised; typical: the square of the mean of the square roots, which a
few large values do not dominate; per MiB: typical KL for each MiB that the reference's type takes in addition"""
RAISED = "KL: of the quantised pair with the first of the ranking in the reference's types; left: of the typical KL"
SHOWN = 15  # rows of a table of tensors; --json and --report have all


def lines(r: QualityReport) -> list[str]:
    """Write the tables of the report: tensors, layers, cases, ranking. `headline` and `verdict` sum them up."""
    pages = [_tensors(r), _layers(r), _cases(r), _ranking(r), _raised(r)]
    return [line for page in pages if page for line in [*page, ""]]


def headline(r: QualityReport) -> str:
    """Say the main result in one sentence."""
    answers = spread(r.behaviour.differences, True)
    if answers is None:
        worst = max((d.rows_rel_rms for d in r.behaviour.differences), default=0.0)
        return f"Image rows differ by {worst:.1e} (relRMS) for the worst picture"
    return f"{_same(r)}; the next token costs {answers.mean:.2g} nats more on average"


def _same(r: QualityReport) -> str:
    differences = r.behaviour.differences
    return f"{sum(map(same_answer, differences))} of {len(differences)} greedy answers stay the same"


def worst(r: QualityReport) -> list[TensorError]:
    """Return the tensors that differ, or whose products do: the worst product first, those in no product last."""
    products = r.behaviour.products
    rows = [t for t in r.tensors if t.rel_rms or t.name in products]
    return sorted(rows, key=lambda t: (-products.get(t.name, 0.0), -t.rel_rms))


def verdict(r: QualityReport) -> list[str]:
    """Say all results in sentences with numbers."""
    sentences = [_size(kind, size) for kind, size in r.files.items() if size.n_bytes != size.reference_bytes]
    if r.precision == "ggml":
        sentences.append("the quantised pair ran with ggml's rounding of activations, the reference in float32")
    return [*sentences, *_images(r), *_next_tokens(r), *_worst(r), *_advice(r)]


def _size(kind: str, s: FileSize) -> str:
    bits, reference = (8 * n / s.n_weights for n in (s.n_bytes, s.reference_bytes))
    share = s.n_bytes / s.reference_bytes
    return (
        f"{kind}: {s.n_bytes:,} bytes, {bits:.2f} bits per weight; {share:.0%} of the reference's, {reference:.2f} bits"
    )


def _images(r: QualityReport) -> list[str]:
    cosines = r.cosines
    if not len(cosines):
        return []
    most = max(d.rows_rel_rms for d in r.behaviour.differences)
    if not most:
        return ["image rows: the same as the reference's"]
    mean, least = (f"{x:.6f}" for x in (cosines.mean(), cosines.min()))
    return [f"image rows: cosine {mean} on average, {least} at worst; relRMS {most:.1e} for the worst picture"]


def _next_tokens(r: QualityReport) -> list[str]:
    differences = r.behaviour.differences
    answers, questions = spread(differences, True), spread(differences, False)
    sentences = []
    if answers is not None:
        sentences.append(f"next token in answers: {_kl(answers)}; {_same(r)}")
    if questions is not None:
        sentences.append(f"next token in questions: {_kl(questions)}")
    return sentences


def _kl(s: Spread) -> str:
    return (
        f"KL {s.mean:.2g} nats on average, {s.typical:.2g} typically, {s.max:.2g} at most, over {s.n} positions; "
        f"the likeliest token is the same at {s.top_1:.1%}"
    )


def _worst(r: QualityReport) -> list[str]:
    added = r.behaviour.added
    name = max(added, key=added.__getitem__, default=None)
    return [f"layers: {name} adds most error, relRMS {added[name]:.1e}"] if name and added[name] else []


def _advice(r: QualityReport) -> list[str]:
    if not any(t.rel_rms for t in r.tensors):
        return ["weights: the same as the reference's, so that no tensor is ranked"]
    if not r.ranking:
        return []
    first, n, total = r.ranking[0], len(r.ranking), sum(size.n_bytes for size in r.files.values())
    alone = f"alone it costs {first.kl.typical:.2g} nats typically, and {first.extra_bytes:,} bytes would undo that"
    sentences = [f"more bits: first of {n} is {first.label}; {alone}"]
    step = next((step for step in r.raised if r.share(step) >= 0.5), r.raised[-1] if r.raised else None)
    if step is not None:
        extra = f"{step.extra_bytes:,} bytes (+{step.extra_bytes / total:.1%})"
        sentences.append(f"raising the first {step.n} takes {extra} and {_removed(r.share(step))} of the typical KL")
    return sentences


def _removed(share: float) -> str:
    """Say in words which share of a KL goes away."""
    return f"removes {share:.0%}" if share >= 0 else f"adds {-share:.0%}"


def _tensors(r: QualityReport) -> list[str]:
    products, rows = r.behaviour.products, worst(r)
    table = [
        [
            t.name,
            t.type,
            t.reference_type,
            f"{t.bits:.2f}",
            f"{t.rel_rms:.1e}",
            f"{t.max_abs:.1e}",
            _error(products, t.name),
        ]
        for t in rows[:SHOWN]
    ]
    head = ["tensor", "type", "reference", "bits", "relRMS", "max abs", "product"]
    return _table(head, table, len(rows), TENSORS) if rows else []


def _error(errors: dict[str, float], name: str) -> str:
    return f"{errors[name]:.1e}" if name in errors else "-"


def _layers(r: QualityReport) -> list[str]:
    b = r.behaviour
    rows = [[name, f"{added:.1e}", f"{b.carried[name]:.1e}"] for name, added in b.added.items()]
    return _table(["layer", "adds", "carries"], rows, len(rows), LAYERS) if any(b.carried.values()) else []


def _cases(r: QualityReport) -> list[str]:
    rows = []
    for case, d in zip(r.cases, r.behaviour.differences, strict=True):
        s = spread([d], True)
        cosine = f"{d.cosines.min():.6f}" if len(d.cosines) else "-"
        kl = ["-", "-", "-"] if s is None else [f"{s.mean:.1e}", f"{s.max:.1e}", "same" if same_answer(d) else "other"]
        rows.append([case.label or "-", cosine, *kl, f"{_short(case.question)} {_short(case.answer)}".strip()])
    head = ["picture", "worst row", "KL mean", "KL max", "answer", "question and the reference's answer"]
    return _table(head, rows, len(rows), CASES)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 50 else line[:49] + "…"


def _ranking(r: QualityReport) -> list[str]:
    rows = [
        [
            e.label,
            str(len(e.names)),
            f"{e.extra_bytes:,}",
            f"{e.kl.mean:.1e}",
            f"{e.kl.typical:.1e}",
            f"{e.per_mib:.1e}",
        ]
        for e in r.ranking[:SHOWN]
    ]
    head = ["more bits for", "tensors", "bytes more", "KL mean", "typical", "per MiB"]
    return _table(head, rows, len(r.ranking), RANKING) if rows else []


def _raised(r: QualityReport) -> list[str]:
    rows = [
        [
            f"the first {step.n}",
            f"{step.extra_bytes:,}",
            f"{step.kl.mean:.1e}",
            f"{step.kl.typical:.1e}",
            _left(r, step),
        ]
        for step in r.raised
    ]
    head = ["raised together", "bytes more", "KL mean", "typical", "left"]
    return _table(head, rows, len(rows), RAISED) if rows else []


def _left(r: QualityReport, step: RaisedTensors) -> str:
    return f"{1 - r.share(step):.0%}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], n: int, legend: str) -> list[str]:
    """Align a table and add its legend: the first column and a last one of text to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    left = {0, len(head) - 1} if head[-1].startswith("question") else {0}
    aligned = [
        "  ".join(f"{x:<{w}}" if i in left else f"{x:>{w}}" for i, (x, w) in enumerate(zip(row, widths, strict=True)))
        for row in [head, *rows]
    ]
    more = [f"... and {n - len(rows)} more: --json and --report have them all"] if n > len(rows) else []
    return [line.rstrip() for line in aligned] + more + legend.splitlines()
