"""Test the sandbox. Templates of files are untrusted code: each must end soon, and in a failure with one clear line."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llava_ref.chat import sandbox
from llava_ref.chat.sandboxed import child
from llava_ref.errors import TemplateError

FIELD = "tokenizer.chat_template"


WHERE = "vicuna.gguf"


def one(source, **context):
    """Render in a child process."""
    (rendering,) = sandbox.run(source, [context], WHERE, FIELD)
    return rendering


def here(source, **context):
    """Render in this process."""
    (rendering,) = sandbox.run_trusted(source, [context])
    return rendering


def children():
    """List the processes that this one has started and not waited for."""
    return [pid for f in Path("/proc/self/task").glob("*/children") for pid in f.read_text().split()]


@pytest.fixture
def child_script(monkeypatch):
    """Return a function that replaces the child's script by `code`, in which `child` is the module it would run."""

    def replace(code):
        head = "import os, sys, time; sys.path.extend(sys.argv[1:]); from sandboxed import child\n"
        monkeypatch.setattr(sandbox, "START", f"{head}{code}\n")

    return replace


def test_the_child_has_the_same_environment():
    source = (
        "{{ {'a': '<'} | tojson }}{% generation %}\n{{ strftime_now('%') ~ namespace(x=who).x }}{% endgeneration %}\n"
    )
    assert one(source, who="me").text == '{"a": "<"}%me'


@pytest.mark.parametrize(
    "source, problem",
    [
        ("{{ 'a' * 10**10 }}", "memory"),
        ("{{ '%3000000000d' % 1 }}", "memory"),
        ("{% set x = [0] * 10**9 %}", "memory"),
        ("{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}", "memory"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recurses"),
        ("{{ " + "(" * 50_000 + ")" * 50_000 + " }}", "recurses"),
        ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "recurses"),
        ("{% for a in range(99999) %}{% for b in range(99) %}0123456789{% endfor %}{% endfor %}", "1048576 bytes"),
        ("{{ cycler.__init__.__globals__.os.popen('id') }}", "asks for '__init__' of this, which no template may"),
        ("{% if %}", "line 1: cannot be read: expected an expression"),
    ],
    ids=lambda text: re.sub(r"\W+", "-", text[:30]),
)  # fmt: skip
def test_a_template_that_exceeds_a_limit_gets_one_line(source, problem):
    began = time.monotonic()
    rendering = one(source)
    assert rendering.text is None and not rendering.raised
    assert problem in rendering.problem and len(rendering.problem) <= 1000
    assert time.monotonic() - began < sandbox.PATIENCE


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 7 ** (10 ** 9) }}",  # one long step in C, during which no Python signal handler runs
    ],
)
def test_a_template_is_stopped_after_two_seconds(source):
    began = time.monotonic()
    with pytest.raises(TemplateError, match=f"{WHERE}: {FIELD}: stopped: it needs more than 2 s"):
        one(source)
    assert 1.5 < time.monotonic() - began < sandbox.PATIENCE
    assert children() == []


def test_a_refusal_has_the_words_of_the_template():
    rendering = one("{{ raise_exception('only\x1b user\n' ~ who) }}", who="me")
    assert rendering.raised and rendering.problem == "only\x1b user\nme"
    assert len(one("{{ raise_exception('x' * 5000) }}").problem) == 1000


def test_one_bad_context_does_not_stop_the_others():
    renderings = sandbox.run("{{ 6 // n }}", [{"n": 2}, {"n": 0}, {"n": 3}], WHERE, FIELD)
    assert [rendering.text for rendering in renderings] == ["3", None, "2"]


@pytest.mark.parametrize("source, fits", [("{{ 'a' * 2**20 }}", True), ("{{ 'a' * (2**20 + 1) }}", False),
                                          ("{{ 'é' * 2**19 }}", True), ("{{ 'é' * (2**19 + 1) }}", False),
                                          ("{{ '\x01' * 2**20 }}", True)])  # fmt: skip
@pytest.mark.parametrize("run", [one, here], ids=["child", "here"])
def test_the_output_limit_counts_bytes(source, fits, run):
    assert (run(source).text is not None) is fits


def test_the_memory_limit_leaves_most_of_it_to_the_template():
    assert one("{{ ('a' * 200 * 2**20) | length }}").text == str(200 << 20)
    assert "memory" in one("{{ ('a' * 250 * 2**20) | length }}").problem


def test_texts_reach_the_child_unchanged():
    text = "é\ud800\U0010fffd\x00\x02\n\"'{{ 1 + 1 }}\u2028"
    assert one("{{ a.b[0] }}", a={"b": [text]}).text == text


def test_a_large_job_does_not_block():
    assert one("{{ a | length }}{{ b | length }}", a="é" * 2_000_000, b=[0] * 99).text == "200000099"


def test_the_child_is_bare(child_script):
    child_script(
        "import json, resource; NAMES = 'AS CPU NOFILE FSIZE CORE NPROC'.split()\n"
        "job = json.loads(sys.stdin.buffer.read())\n"
        "child.confine(2, 256 << 20)\n"
        "limits = {n: resource.getrlimit(getattr(resource, 'RLIMIT_' + n)) for n in NAMES}\n"
        "try: open('/etc/passwd')\n"
        "except OSError: limits['open'] = 'refused'\n"
        "fds = [i for i in range(256) if os.path.exists(f'/proc/self/fd/{i}')]\n"
        "text = json.dumps([limits, fds, dict(os.environ), os.getcwd(), sys.flags.isolated])\n"
        "print(json.dumps({'text': text, 'marks': [[len(text), 0]]}))"
    )
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        limits, fds, env, cwd, isolated = json.loads(one("").text)
    finally:
        os.close(read), os.close(write)
    assert limits == {"AS": [256 << 20] * 2, "CPU": [2, 2], "NOFILE": [0, 0], "FSIZE": [0, 0], "CORE": [0, 0],
                      "NPROC": [0, 0], "open": "refused"}  # fmt: skip
    assert fds == [0, 1, 2] and isolated == 1 and cwd == "/"
    assert set(env) <= {"LC_CTYPE"}  # Python sets it if the locale is C


def test_the_script_imports_nothing_of_this_package(child_script):
    child_script(
        "import json; text = ' '.join(m for m in sys.modules if 'llava' in m or m == 'numpy')\n"
        "print(json.dumps({'text': text, 'marks': [[len(text), 0]]}))"
    )
    assert one("").text == ""


@pytest.mark.parametrize(
    "code, problem",
    [
        ("sys.exit(3)", r"crashed \(exit status 3\)"),
        ("os.abort()", r"crashed \(signal 6\)"),
        ("print('no json')", "no readable answer"),
        ("sys.stdout.buffer.write(b'\\xff')", "no readable answer"),
    ],
)
def test_a_child_that_dies_is_an_error(child_script, code, problem):
    child_script(code)
    with pytest.raises(TemplateError, match=problem):
        one("x" * 500_000)  # more than a pipe holds: the child ends before all is written
    assert children() == []


def test_the_alarm_stops_a_child_that_only_waits(child_script, monkeypatch):
    """Ignore and block the alarm signal here: children inherit both, and must undo them."""
    monkeypatch.setattr(sandbox, "SECONDS", 1)
    child_script("child.confine(1, 256 << 20); time.sleep(60)")
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    began = time.monotonic()
    try:
        with pytest.raises(TemplateError, match="needs more than 1 s"):
            one("")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.signal(signal.SIGALRM, before)
    assert 1.9 < time.monotonic() - began < sandbox.PATIENCE


@pytest.mark.parametrize("code", ["time.sleep(60)", "os.close(1); time.sleep(60)", "sys.stdin.read(); time.sleep(60)"])
def test_a_child_that_escaped_every_limit_is_killed(child_script, monkeypatch, code):
    monkeypatch.setattr(sandbox, "PATIENCE", 0.5)
    child_script(code)
    began = time.monotonic()
    with pytest.raises(TemplateError, match="it needs more than"):
        one("x" * 500_000)
    assert time.monotonic() - began < 10
    assert children() == []


def test_a_child_with_endless_output_is_stopped(child_script):
    child_script("while True: sys.stdout.buffer.write(b' ' * 65536)")
    with pytest.raises(TemplateError, match="no readable answer"):
        one("")
    assert children() == []


def test_nothing_is_left_open():
    one("")
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        one("{{ 1 // 0 }}")
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
    assert children() == []


def test_several_threads_may_render():
    texts = {}
    threads = [threading.Thread(target=lambda i=i: texts.update({i: one("{{ i }}", i=i).text})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {i: str(i) for i in range(4)}


@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1, 2)], ids=str)
def test_rendering_works_without_standard_streams(closed):
    code = (
        "import os, sys\n"
        "from llava_ref.chat import sandbox\n"
        f"for fd in {closed}: os.close(fd)\n"
        "os._exit(7 if next(sandbox.run('{{ a }}', [{'a': 'ok'}], 'w', 'f')).text == 'ok' else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 7


def test_a_missing_interpreter_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(TemplateError, match="no process to render it in: No such file"):
        one("")


def test_the_child_is_confined_before_it_compiles_a_template():
    """Check the order in `main`: a hostile template that is compiled first would run without limits."""
    source = Path(child.__file__).read_text()
    main = source[source.index("def main()") :]
    assert 0 < main.index("confine(") < main.index("_render_within(")
