"""lm-evaluation-harness and lmms-eval run as docs/scoring.md shows, and find what the model's own logits say.

They have an environment of their own, `.venv/harness`, which sees the packages of this one.
"""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from llava_ref.tracing.distance import log_softmax

from .running import PICTURES, data_uri, picture

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.prefix) / "harness" / "bin" / "python"
QUESTIONS = [json.loads(line) for line in (ROOT / "tests/api/evaluation/questions.jsonl").read_text().splitlines()]
CAPTIONS = [shown["caption"] for shown in json.loads((PICTURES / "pictures.json").read_text())]
EXAMPLE = re.compile(r"^```sh\n([^`]*?lmm?s?_eval [^`]*)^```\n+```text\n(.*?)^```$", re.DOTALL | re.MULTILINE)

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(not PYTHON.exists(), reason="the harnesses are not installed: make conformance"),
]


def log_likelihoods(model, context, continuation, *shown):
    """Return the log-probability of each token of a continuation, from the logits of one pass over all of it."""
    ids = model.raw_request(context + continuation, shown).token_ids
    rows = log_softmax(model.logits(context + continuation, shown))
    return [rows[i - 1, ids[i]] for i in range(len(model.raw_request(context, shown).token_ids), len(ids))]


def run(server, tmp_path, name):
    """Run the page's command for a task; return its table, the page's, and what it logged by task and document."""
    found = {command: table for command, table in EXAMPLE.findall((ROOT / "docs" / "scoring.md").read_text())}
    (written,) = [pair for pair in found.items() if name in pair[0]]
    words = shlex.split(written[0].replace("\\\n", "").replace("http://127.0.0.1:3928", server.url))
    harness = "lmms_eval" if "lmms_eval" in words else "lm_eval"
    settings = dict(word.split("=", 1) for word in words[: words.index(harness)] if "=" in word)
    arguments = words[words.index(harness) + 1 :]
    done = subprocess.run(
        [PYTHON, "tests/api/evaluation/only_included.py", harness, *arguments]
        + ["--output_path", str(tmp_path / "out"), "--log_samples"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | settings | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    logged = {}
    for path in sorted((tmp_path / "out").rglob("*samples_*.jsonl")):
        (task,) = re.findall(r"shapes_(?:seen_)?(?:choice|answer|perplexity)", path.name)
        logged[task] = [json.loads(line) for line in path.read_text().splitlines()]
    return table(done.stdout), table(written[1]), logged


def table(printed):
    """Return the values of a harness' table by task and metric. A task is named in its first row only."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line[:1] == "|"]
    (head,) = [row for row in rows if row[0] == "Tasks"]
    values, task = {}, ""
    for row in rows:
        if row is not head and not row[0].startswith("-"):
            task = row[0] or task
            values[task, row[head.index("Metric")]] = float(row[head.index("Value")])
    return values


def check(printed, written, expected):
    """Compare what was printed, with four decimals, with what was computed here and with what the page shows."""
    assert printed == pytest.approx(expected, rel=1e-5, abs=6e-5)
    assert written == pytest.approx(expected, rel=1e-5, abs=6e-5), "docs/scoring.md"


def share(right):
    return sum(right) / len(right)


def pick(scores, lengths=None):
    """Return the number of the choice with the highest score, or the highest for each character."""
    return int(np.argmax(np.array(scores) / (1 if lengths is None else np.array(lengths))))


def accuracies(task, scores):
    lengths = [[len(choice) for choice in asked["choices"]] for asked in QUESTIONS]
    answers = [asked["answer"] for asked in QUESTIONS]
    return {
        (task, "acc"): share([pick(mine) == a for mine, a in zip(scores, answers, strict=True)]),
        (task, "acc_norm"): share([pick(mine, n) == a for mine, n, a in zip(scores, lengths, answers, strict=True)]),
    }


def test_lm_eval_scores_texts(server, model, tmp_path):
    printed, written, logged = run(server, tmp_path, "shapes_perplexity")
    contexts = [f"USER: {asked['question']} ASSISTANT:" for asked in QUESTIONS]
    scores = [
        [sum(log_likelihoods(model, context, f" {choice}")) for choice in asked["choices"]]
        for context, asked in zip(contexts, QUESTIONS, strict=True)
    ]
    texts = [f"USER: Describe the picture. ASSISTANT: {caption}" for caption in CAPTIONS]
    rolling = [sum(log_likelihoods(model, "", text)) for text in texts]
    n_bytes, n_words = (
        sum(len(part) for part in parts) for parts in ([t.encode() for t in texts], map(str.split, texts))
    )
    expected = accuracies("shapes_choice", scores) | {
        ("shapes_perplexity", "bits_per_byte"): -sum(rolling) / n_bytes / math.log(2),
        ("shapes_perplexity", "byte_perplexity"): math.exp(-sum(rolling) / n_bytes),
        ("shapes_perplexity", "word_perplexity"): math.exp(-sum(rolling) / n_words),
    }
    check(printed, written, expected)
    for task, mine in (("shapes_choice", scores), ("shapes_perplexity", rolling)):
        theirs = {entry["doc_id"]: entry["filtered_resps"] for entry in logged[task]}
        assert len(theirs) == len(mine)
        for document, one in enumerate(mine):
            given = (
                [float(pair[0]) for pair in theirs[document]] if isinstance(one, list) else float(theirs[document][0])
            )
            assert given == pytest.approx(one, abs=1e-4)


def answers(model, task):
    """Return the share of the questions that the library, without a server, answers to the letter."""
    right = []
    for asked in QUESTIONS:
        image = {"type": "image_url", "image_url": {"url": data_uri(picture(asked["picture"]))}}
        content = [image, {"type": "text", "text": asked["question"]}]
        text = model.chat([{"role": "user", "content": content}], max_tokens=48, temperature=0).text
        right.append(text == asked["choices"][asked["answer"]])
    return {(task, "exact_match"): share(right)}


def test_lm_eval_sends_pictures(server, model, tmp_path):
    printed, written, _ = run(server, tmp_path, "shapes_answer")
    check(printed, written, answers(model, "shapes_answer"))


def test_lmms_eval_scores_answers_about_pictures(server, model, tmp_path):
    printed, written, logged = run(server, tmp_path, "shapes_seen_choice")
    scores = []
    for asked in QUESTIONS:
        context, shown = f"USER: <image>\n{asked['question']} ASSISTANT:", PICTURES / asked["picture"]
        scores.append([np.mean(log_likelihoods(model, context, f" {c}", shown)) for c in asked["choices"]])
    expected = accuracies("shapes_seen_choice", scores) | answers(model, "shapes_seen_answer")
    check(printed, written, expected)
    assert len(logged["shapes_seen_choice"]) == len(QUESTIONS)
    for entry in logged["shapes_seen_choice"]:
        losses, greedy = zip(*entry["filtered_resps"], strict=True)
        assert [-float(loss) for loss in losses] == pytest.approx(scores[entry["doc_id"]], abs=1e-4)
        assert greedy.count("True") <= 1 and len(set(greedy) - {"True", "False"}) == 0
