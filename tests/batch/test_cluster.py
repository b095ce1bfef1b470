"""A batch on a real cluster of this machine: two nodes, of which one is killed in the middle."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the cluster extra is not installed: ray")

from llava_ref.batch.cluster import Cluster
from llava_ref.batch.lines import Task
from llava_ref.errors import ParameterError

from ..support.waiting import until
from .nodes import nodes
from .requests import GOOD, data_uri, line, picture, see, write

pytestmark = [pytest.mark.oracle, pytest.mark.skipif(sys.platform != "linux", reason="nodes are killed by /proc")]
PICTURES = ("count.png", "digit.png", "word.png")
PATIENCE = 300.0
"""Seconds until a test gives up: a machine that is busy with others takes a minute to start a worker."""
LOG = os.environ.get("LLAVA_REF_BATCH_LOG")
"""A file for the story of the test."""


def requests():
    """Answers of up to 12 tokens, a mistake, and pictures by path."""
    warm = {"temperature": 1.5, "logprobs": True, "max_tokens": 12, "logit_bias": {"2": -100}}
    asked = [see(data_uri(picture(PICTURES[i % 3])), "Describe the picture.", **warm) for i in range(40)]
    lines = [line(f"request-{i}", body) for i, body in enumerate(asked)]
    lines[5:5] = ["{", *GOOD, line("path", see("file://pictures/count.png", "Count the stars."))]
    return lines


class Story:
    """What happened, with seconds."""

    def __init__(self):
        self.began, self.lines = time.monotonic(), []

    def tell(self, text):
        self.lines.append(f"{time.monotonic() - self.began:6.2f} s  {text}")

    def keep(self):
        if LOG:
            Path(LOG).write_text("".join(f"{text}\n" for text in self.lines))


@pytest.fixture(scope="module")
def cluster():
    with nodes() as made:
        yield made


class Runs:
    """Runs of one batch: alone, or by a process of their own on a cluster."""

    def __init__(self, batch):
        (batch.folder / "pictures").mkdir()
        (batch.folder / "pictures" / "count.png").write_bytes(picture("count.png"))
        self.batch, self.lines = batch, requests()
        write(batch.folder / "in.jsonl", self.lines)
        self.said = f"{len(self.lines) - 1} of {len(self.lines)} answered, 1 with errors: "

    def alone(self, output):
        status, out, err = self.batch(None, "--allow-image-dir", "pictures", output=output)
        assert (status, out) == (1, f"{self.said}{output}\n"), err
        return (self.batch.folder / output).read_bytes()

    @contextmanager
    def started(self, output, address):
        """Start a process, which has ended behind the block."""
        options = ["-t", "1", "--allow-image-dir", "pictures", "--ray", address]
        with subprocess.Popen(
            [sys.executable, "-m", "llava_ref", "batch", "in.jsonl", "-o", output, *options],
            cwd=self.batch.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        ) as run:  # fmt: skip
            try:
                yield run
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(run.pid, signal.SIGKILL)

    def count(self, output):
        path = self.batch.folder / output
        return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture
def runs(batch):
    return Runs(batch)


def test_a_machine_killed_in_the_middle_costs_time_and_nothing_else(cluster, runs):
    story = Story()
    alone = runs.alone("alone.jsonl")
    story.tell(f"on this machine: {runs.said}alone.jsonl; {len(alone)} bytes")
    second = [cluster.add(), cluster.add()][1]
    with runs.started("cluster.jsonl", cluster.address) as run:
        story.tell(f"two nodes; the same batch with --ray {cluster.address}")
        until(lambda: runs.count("cluster.jsonl") >= 15 or run.poll() is not None, PATIENCE)
        at = runs.count("cluster.jsonl")
        n_killed = cluster.kill(second)
        story.tell(f"SIGKILL to the raylet of one node and all below it, {n_killed} processes, behind {at} lines")
        until(lambda: runs.count("cluster.jsonl") > at or run.poll() is not None, PATIENCE)
        story.tell(f"goes on: {runs.count('cluster.jsonl')} lines")
        out, err = run.communicate(timeout=PATIENCE)
    for text in [*err.splitlines(), *out.splitlines()]:
        story.tell(f"it says: {text}")
    found = (runs.batch.folder / "cluster.jsonl").read_bytes()
    story.tell(f"{len(found)} bytes, {'the same' if found == alone else 'OTHERS'} as on one machine")
    story.keep()
    assert 15 <= at < len(runs.lines) and "is lost; its " in err and run.returncode == 1, err
    assert found == alone and out == f"{runs.said}cluster.jsonl\n"


def test_what_a_cluster_began_goes_on_without(cluster, runs):
    with runs.started("mixed.jsonl", cluster.address) as run:
        until(lambda: runs.count("mixed.jsonl") >= 8 or run.poll() is not None, PATIENCE)
    path = runs.batch.folder / "mixed.jsonl"
    assert 8 <= runs.count("mixed.jsonl") < len(runs.lines)
    path.write_bytes(path.read_bytes()[:-9])
    assert runs.alone("mixed.jsonl") == runs.alone("alone.jsonl")


def test_a_line_that_ends_its_worker_ends_the_run_and_is_named(cluster, capsys):
    """It is not confused with those that are lost with it: after a loss each is given to a worker alone."""

    class Fatal:
        together = 1

        def each(self, take):
            while (task := take()) is not None:
                if task.number == 4:
                    os._exit(1)
                yield task, b"good"

    told = []
    tasks = iter([Task(number, "", None, "", b"") for number in range(1, 9)])
    answers = Cluster(cluster.address, dict, Fatal, told.append, cards=False).each(lambda: next(tasks, None))
    done = []
    with pytest.raises(ParameterError, match="--ray: line 4: 3 workers were lost while they answered it"):
        for task, answer in answers:
            done.append(task.number)
            assert answer == b"good"
    holding = [text for text in told if "had no lines" not in text]  # a worker may be sent where a machine is no more
    assert {1, 2, 3} <= set(done) and len(holding) == 3 and capsys.readouterr().out == ""
