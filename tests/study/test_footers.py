"""Every page ends with what it was made from, and with the command that makes it again."""

import hashlib
import html
import json
import re
import shlex
import shutil

import gguf
import pytest

from llava_ref import __version__, embedded
from llava_ref.cli import main
from llava_ref.tracing.tracefile import TraceFile

from ..support.rewriting import changed
from ..support.tiny_pair import VICUNA, Tiny, write_pair

WORDS = "-p 'What colour is the circle?' --backend numpy"
ASK = f"{WORDS} -n 2"
PAGES = {
    "attend": f"attend --image 'a b.png' {ASK} --cells 3 -o out.html",
    "lens": f"lens --image 'a b.png' {ASK} --quirk gelu=tanh -o out.html",
    "explain": f"explain --image 'a b.png' {ASK} -o out.html",
    "patch": f"patch --image 'a b.png' --from-image c.png {WORDS} --cells 2 -o out.html",
    "quality": f"quality --image 'a b.png' {WORDS} --rank none --report out.html",
    "conform": f"conform --image 'a b.png' {ASK} --against this:backend=torch --report out.html",
    "cases": "conform --cases cases -n 2 --backend numpy --against this:class_token=last --report out.html",
}
SEEN = {"type": "image_url", "image_url": {"url": "file://c.png"}}
CASE = {"messages": [{"role": "user", "content": [SEEN, {"type": "text", "text": "What colour is the circle?"}]}]}


def write_cases(folder, picture):
    """Write a folder `cases` with a case of one picture."""
    (folder / "cases").mkdir()
    shutil.copy(picture, folder / "cases" / "c.png")
    line = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": CASE}
    (folder / "cases" / "cases.jsonl").write_text(json.dumps(line) + "\n")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pictures = embedded()[0].parent / "pictures"
    sources = (*embedded(), pictures / "colour.png", pictures / "shape.png")
    for source, name in zip(sources, ("text.gguf", "mmproj.gguf", "a b.png", "c.png"), strict=True):
        shutil.copy(source, tmp_path / name)
    write_cases(tmp_path, tmp_path / "c.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def page(words):
    """Run a command; return its page, less times and memory, which no two runs share."""
    assert main(words) in (0, 1)
    with open("out.html", encoding="utf-8") as file:
        return re.sub(r"[\d,]+(\.\d+)? ?(m?s\b|MB\b|%\"></div>)", r"N \2", file.read())


@pytest.mark.parametrize("name", PAGES)
def test_the_command_of_the_footer_makes_the_page_again(name, folder):
    words = [*shlex.split(PAGES[name]), "-m", "text.gguf", "--mmproj", "mmproj.gguf"]
    first = page(words)
    footer = first[first.rindex("<footer") :]
    command = shlex.split(html.unescape(re.search("<code>(llava-ref .*?)</code>", footer)[1]))
    assert command == ["llava-ref", *words]
    assert page(command[1:]) == first


@pytest.mark.parametrize("name", ["lens", "conform"])
def test_the_footer_says_what_the_page_was_made_from(name, folder):
    text = page([*shlex.split(PAGES[name]), "-m", "text.gguf", "--mmproj", "mmproj.gguf"])
    footer = text[text.rindex("<footer") :]
    for path in ("text.gguf", "mmproj.gguf", "a b.png"):
        digest = hashlib.sha256((folder / path).read_bytes()).hexdigest()
        assert f"{path}, {(folder / path).stat().st_size:,} bytes" in footer
        assert f'title="{digest}">{digest[:12]}<' in footer
    assert f"llava-ref {__version__}" in footer and "numpy on cpu, precision exact; profile llava" in footer
    assert ("with gelu=tanh" in footer) == (name == "lens")


def split(source, number):
    """Write file `number` of two, from 1, of a model: the tensors in turn."""

    def half(keys, tensors):
        names = list(tensors)
        for name in names[2 - number :: 2]:
            del tensors[name]
        entries = {"no": number - 1, "count": 2, "tensors.count": len(names)}
        kind = gguf.GGUFValueType
        keys |= {f"split.{name}": (n, kind.INT32 if "." in name else kind.UINT16, None) for name, n in entries.items()}

    return changed(source, source.with_name(f"model-{number:05}-of-00002.gguf"), half)


def test_every_file_of_a_split_model_is_named(tmp_path, monkeypatch):
    source, mmproj = write_pair(tmp_path, Tiny(template=VICUNA))
    shutil.copy(embedded()[0].parent / "pictures" / "shape.png", tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    model, other = (split(source, number) for number in (1, 2))
    words = ["-m", model.name, "--mmproj", mmproj.name, "--image", "a.png", "-p", "red"]
    text = page(["lens", *words, "-n", "2", "-o", "out.html"])
    listed = re.findall(r'<li>(.+?), ([\d,]+) bytes, SHA-256 <code title="(\w+)">', text[text.rindex("<footer") :])
    wanted = [path.resolve() for path in (model, other, mmproj, tmp_path / "a.png")]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in wanted]
    sizes = [f"{path.stat().st_size:,}" for path in wanted]
    assert listed == list(zip([path.name for path in wanted], sizes, digests, strict=True))
    assert main(["trace", *words, "-o", "out.safetensors", "--names", "embd"]) == 0
    about = json.loads(TraceFile("out.safetensors").about["files"])
    assert about == dict(zip([path.name for path in wanted], digests, strict=True))
