"""The README and docs/conform.md show what `conform` prints of the embedded pair against llama.cpp."""

import re
from pathlib import Path

import pytest

from llava_ref import embedded
from llava_ref.cli import main
from llava_ref.conformance.engines.llama_cpp import oracle

from ..support.image_files import widened
from ..support.shown import difference

reason = oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide") / "wide.png"
    widened(embedded()[0].parent / "pictures" / "caption.png").save(path)
    return str(path)


def test_conform_prints_what_the_pages_show(wide, capsys):
    asked = ["conform", "--image", wide, "-p", "Describe the picture.", "--against", "llama.cpp"]
    assert main(asked) == 1
    printed = capsys.readouterr().out
    page, readme = ((ROOT / name).read_text() for name in ("docs/conform.md", "README.md"))
    (shown,) = re.findall(r"^```\n(llava_ref torch exact.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert not difference(shown, printed)
    (findings,) = re.findall(r"conform: written by make pictures -->\n```text\n(.*?)^```$", readme, re.DOTALL | re.M)
    wanted = "".join(f"  {line}\n" for line in findings.splitlines())
    assert not difference(f"...\n{wanted}...\n", printed)
    assert main([*asked, "--profile", "llama.cpp"]) == 0, "as both pages say"
    assert "no stage exceeds its bound" in capsys.readouterr().out
