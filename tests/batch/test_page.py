"""What docs/batch.md shows is what the commands print."""

import re
import shlex
import shutil
from pathlib import Path

from llava_ref.cli import main

from .requests import PICTURES

PAGE = (Path(__file__).parents[2] / "docs" / "batch.md").read_text()


def test_the_example_says_what_the_page_shows(batch, capsys):
    cases = batch.folder / "cases"
    cases.mkdir()
    for name in ("count.png", "word.png"):
        shutil.copy(PICTURES / name, cases)
    (requests,) = re.findall(r"^```jsonl\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (cases / "cases.jsonl").write_text(requests)
    shown = re.findall(r"^```sh\n(llava-ref batch [^\n]*)\n```\n```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(shown) == 2
    for line, text in shown:
        assert main(shlex.split(line)[1:]) == 1
        out, err = capsys.readouterr()
        assert err + out == text
    (answers,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    written = re.sub(r"((req|batch_req|fp)_|chatcmpl-)[0-9a-f]+", r"\1.", (batch.folder / "answers.jsonl").read_text())
    first, _, *others = written.splitlines()
    assert answers.splitlines() == [first, *others]
