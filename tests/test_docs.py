"""The examples of docs/ run, on a tiny pair in the place of the embedded one."""

import io
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from pkgutil import iter_modules

import numpy as np
import pytest
from PIL import Image

from llava_ref import embedded, tools
from llava_ref.cli import main
from llava_ref.models import (
    clip,
    gemma3,
    idefics3,
    internvl,
    llama,
    mllama,
    mllama_vision,
    pixtral,
    qwen2vl,
    siglip,
    vit,
)
from llava_ref.models.stages import IMAGE
from llava_ref.tools.parser import command_parser

from .support.shown import difference
from .support.tiny_pair import VICUNA, Tiny, write_pair

DOCS = Path(__file__).parents[1] / "docs"


def blocks(name, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / name).read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pair = write_pair(tmp_path, Tiny(template=VICUNA))
    commands = [import_module(f"{tools.__name__}.{found.name}") for found in iter_modules(tools.__path__)]
    for module in (import_module("llava_ref.loading"), *commands):
        if hasattr(module, "embedded"):
            monkeypatch.setattr(module, "embedded", lambda: pair)
    for name in ("cat.jpg", "a.png", "b.png"):
        Image.fromarray(np.full((9, 13, 3), 200, np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_examples(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks("python.md", "python"))
    assert code.count("\n") > 20
    exec(compile(code, "python.md", "exec"), {})
    assert "'image_tokens': 64" in capsys.readouterr().out
    with Image.open("head.png") as drawn:
        assert len(drawn.getcolors(1 << 20)) > 10


def commands(name):
    """Each line that one process can run: no chat, and no demo, which has tests of its own."""
    for line in "".join(blocks(name, "sh")).splitlines():
        plain = re.sub(r"\$'([^']*)'", lambda m: shlex.quote(m[1].encode().decode("unicode_escape")), line)
        words = [*takewhile(lambda word: word != "|", shlex.split(plain, comments=True))]
        if words[:1] == ["llava-ref"] and words[1] not in ("chat", "demo", "serve"):
            yield words[1:]


def test_command_examples(folder, capsys):
    pages = ("commands.md", "tracing.md", "studies.md", "replay.md")
    lines = [line for page in pages for line in commands(page)]
    assert len(lines) >= 12
    for arguments in lines:
        if arguments[0] in ("generate", "encode", "logits", "quality"):
            arguments = [*arguments, "--backend", "numpy"]
        assert main(arguments) == 0, (arguments, capsys.readouterr().err)


@pytest.mark.parametrize(
    "shown, printed, same",
    [
        ("a 1\nb", "a  1\nb\n", True),
        ("a 1\nb", "a 2\nb", False),
        ("a 1.00", "a 1.05", True),
        ("a 1.00", "a 1.50", False),
        ("a 5.0e-08", "a 3.1e-08", True),
        ("a 1.0e-06", "a 2.0e-06", False),
        ("a 5.0e-08", "a 5.0e-05", False),
        ("a 3 ms", "a 9 ms", True),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\nd", "a\nb", False),
        ("a\nd", "a\nb\nd", False),
        ("a", "a\nb", False),
        ("a\n...", "a\nb", True),
        ("a b ...", "a b c", True),
        ("a b ...", "a d c", False),
    ],
)
def test_what_counts_as_the_same_output(shown, printed, same):
    assert (difference(shown, printed) == "") == same


@pytest.mark.parametrize("page", ["commands.md", "replay.md", "studies.md", "tracing.md"])
def test_commands_print_what_a_page_shows(page, tmp_path, monkeypatch):
    """The shown output is that of the embedded pair and its pictures."""
    monkeypatch.chdir(tmp_path)
    pair = embedded()
    for path, name in zip(pair, ("text.gguf", "mmproj.gguf"), strict=True):
        (tmp_path / name).symlink_to(path)
    for path in (pair[0].parent / "pictures").glob("*.png"):
        (tmp_path / path.name).symlink_to(path)
    shown = "".join(blocks(page, "console"))
    assert shown
    for line, output in re.findall(r"^\$ llava-ref (.*)\n((?:[^$].*\n|\n)*)", shown, re.MULTILINE):
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            assert main(shlex.split(line)) in (0, 1), printed.getvalue()
        assert not difference(output, printed.getvalue()), line


@pytest.mark.parametrize("page", ["tracing.md", "studies.md"])
def test_examples_on_the_embedded_pair(page):
    exec(compile("\n".join(blocks(page, "python")), page, "exec"), {})


def test_the_tables_of_stages_are_the_code_s():
    written = (DOCS / "tracing.md").read_text().partition("<!-- stages")[2]
    rows = re.findall(r"^\| `(.+?)` \| (.*?) \| (.*?) \| (.*?) \|$", written, re.MULTILINE)
    assert clip.TABLE.block == siglip.TABLE.block == vit.STAGES and llama.TABLE.behind == gemma3.TABLE.behind
    assert clip.TABLE.before[: len(IMAGE)] == siglip.TABLE.before[: len(IMAGE)] == IMAGE
    towers = (*clip.TABLE.before, *siglip.TABLE.before[len(IMAGE) :], *vit.STAGES)
    towers += (*clip.TABLE.behind, *siglip.TABLE.behind, *idefics3.TABLE.behind[1:])
    for table in (internvl.TABLE, qwen2vl.GATED_TABLE, pixtral.TABLE, mllama_vision.TABLE):
        towers += (*table.before[len(IMAGE) :], *table.block, *table.behind)
    texts = (
        *llama.TABLE.before,
        *llama.TABLE.block,
        *mllama.LOOK_TABLE.block,
        *gemma3.TABLE.before,
        *gemma3.TABLE.block,
    )
    table = [*towers, *texts, *llama.TABLE.behind]
    assert rows == [(s.name, s.shape.replace(" ", ", "), s.llama_cpp, s.transformers) for s in table]


def test_the_index_names_every_page():
    linked = set(re.findall(r"\]\(([\w.-]+\.md)\)", (DOCS / "README.md").read_text()))
    assert linked == {page.name for page in DOCS.glob("*.md")} - {"README.md"}


STAGES = ["pictures", "tower", "projector", "prompts", "decoder", "answer"]


@pytest.mark.parametrize("number, name", list(enumerate(STAGES, start=1)))
def test_every_stage_has_a_page_and_a_picture(number, name):
    page = (DOCS / f"{name}.md").read_text()
    assert page.startswith(f"# Stage {number}: ") and f"**{number} " in page.splitlines()[2]
    shown = re.search(r"!\[.+?\]\(images/(stage-\d-\w+\.webp)\)", page)[1]
    assert shown.startswith(f"stage-{number}-")
    with Image.open(DOCS / "images" / shown) as picture:
        assert picture.width > 700 and (DOCS / "images" / shown).stat().st_size < 60_000


def counterparts():
    """Return the rows of the table of TransformerLens's and nnsight's names: hook, stages here, module."""
    written = (DOCS / "tracing.md").read_text().partition("<!-- counterparts")[2].partition("<!-- end")[0]
    return [[cell.strip() for cell in line.split("|")[1:4]] for line in written.splitlines()[3:] if line]


def test_the_counterparts_name_every_stage_of_llama_and_no_other():
    stages = {name: stage.transformers for table in (clip.TABLE, llama.TABLE) for name, stage in table.rows()}
    shown = {name for _, here, _ in counterparts() for name in re.findall(r"`(.+?)`", here)}
    assert shown <= stages.keys() and {name for name, _ in llama.TABLE.rows()} <= shown
    for hook, here, module in counterparts():
        assert hook or here
        if module:
            ours = stages[here.strip("`")]
            path = f"{ours.removeprefix('< ')}.{'input' if ours.startswith('<') else 'output'}"
            assert module == f"`{path.replace('layers.{i}', 'layers[i]').replace('layers.0', 'layers[0]')}`"
    hooks = [hook for row, _, _ in counterparts() for hook in re.findall(r"`(.+?)`", row)]
    assert len(hooks) == len(set(hooks)) > 25


@pytest.mark.parametrize("name", ["llava-1.6", "smolvlm", "qwen2-vl", "internvl", "pixtral", "llama-3.2-vision"])
def test_what_a_family_sees_is_shown(name):
    path = DOCS / "images" / f"seen-{name}.webp"
    assert f"](images/{path.name})" in (DOCS / f"{name}.md").read_text()
    with Image.open(path) as picture:
        assert picture.width == 900 and path.stat().st_size < 100_000


IMAGES = DOCS / "images"


def test_every_picture_is_shown_and_made_by_a_script():
    pages = [*DOCS.glob("*.md"), DOCS.parent / "README.md"]
    shown = {name for page in pages for name in re.findall(r"images/([\w.-]+\.webp)", page.read_text())}
    there = {path.name for path in IMAGES.glob("*.webp")}
    assert shown == there
    scripts = "".join(path.read_text() for path in IMAGES.glob("*.py"))
    for stem in (name.removesuffix(".webp") for name in there):
        family = stem.removeprefix("seen-")
        assert f'"{stem}"' in scripts or f'"{stem}.webp"' in scripts or (family != stem and f'"{family}"' in scripts), (
            stem
        )
    assert sum(path.stat().st_size for path in IMAGES.glob("*.webp")) < 1_200_000


def test_the_gallery_shows_what_its_script_runs(monkeypatch):
    pytest.importorskip("fcntl", reason="Chromium is driven over a pipe that Windows lacks")
    monkeypatch.syspath_prepend(IMAGES)
    shots = import_module("gallery").SHOTS
    written = (DOCS / "gallery.md").read_text()
    order = re.findall(r"^(llava-ref .*)$|\]\(images/([\w-]+)\.webp\)", written, re.MULTILINE)
    command, found = "", {}
    for line, name in order:
        command = line or command
        found |= {name: command} if name else {}
    elsewhere = {"report", "page", "page-states"}  # of make.py
    assert {name: command for name, command in found.items() if name not in elsewhere} == {
        name: shot.command for name, shot in shots.items()
    }
    assert elsewhere < found.keys()
    for shot in shots.values():
        _, command, *words = shlex.split(shot.command)
        command_parser(command).parse_all(words)
