"""docs/notebook.ipynb runs, shows what it says, and is small: its cells are run here in this process."""

import ast
import json
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("agg")
import matplotlib.pyplot as plt

PATH = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
CELLS = [cell for cell in json.loads(PATH.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def stored(cell):
    """Return what a cell printed, the text of its last expression, and how many figures it drew."""
    printed = "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")
    texts = [output["data"]["text/plain"] for output in cell["outputs"] if output["output_type"] == "execute_result"]
    figures = [output for output in cell["outputs"] if output["output_type"] == "display_data"]
    assert all("image/png" in output["data"] for output in figures)
    return printed, "".join(texts[0]) if texts else "", len(figures)


def run(cell, names, monkeypatch):
    """Return the same of a cell that is run here."""
    source, drawn, last = "".join(cell["source"]), [], None
    monkeypatch.setattr(plt, "show", lambda: drawn.append(plt.get_fignums()))
    tree, text = ast.parse(source), StringIO()
    expression = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(text):
        exec(compile(tree, "notebook", "exec"), names)
        if expression is not None:
            last = eval(compile(ast.Expression(expression.value), "notebook", "eval"), names)
    for figure in map(plt.figure, plt.get_fignums()):
        figure.canvas.draw()
    plt.close("all")
    if hasattr(last, "_repr_html_"):
        assert last._repr_html_()
    return text.getvalue(), last, len(drawn)


def words(text):
    """Leave out numbers, which differ in their last figures, and the layout of lists."""
    return re.sub(r"[\d.e+-]*\d|\s+|ms|0x\w+", " ", str(text)).split()


def test_the_notebook_runs_and_shows_what_it_says(monkeypatch):
    names = {"__name__": "__main__"}
    for number, cell in enumerate(CELLS, start=1):
        printed, last, figures = stored(cell)
        now, value, drawn = run(cell, names, monkeypatch)
        assert cell["execution_count"] == number, "make notebook runs it again"
        assert words(now) == words(printed) and drawn == figures, f"cell {number}: make notebook runs it again"
        if last and "PIL" not in last:
            assert words(value if isinstance(value, str) else repr(value)) == words(last), f"cell {number}"
    lost, effects, covered = (names[name] for name in ("lost", "effects", "covered"))
    assert lost.argmax() == 5 and abs(lost[2]).max() < 0.2 * names["margin"], "what its text says of heads"
    assert effects[:4, [5, 6, 9, 10]].min() > 0.3 and effects[4, 16] > 0.99, "what its text says of patching"
    assert covered.argmax() in (27, 28, 35, 36) and abs(names["by_row"]).argmax() in (27, 28, 35, 36)


def test_the_notebook_is_small_and_free_of_traces_of_its_maker():
    text = PATH.read_text("utf-8")
    assert PATH.stat().st_size < 300_000 and sum(stored(cell)[2] for cell in CELLS) == 6
    assert not re.search(r'/home/|/tmp/|/root/|"execution": |Traceback|"stderr"', text)


@pytest.mark.parametrize("link", re.findall(r"\]\(([\w./-]+)\)", PATH.read_text("utf-8")))
def test_links_of_the_notebook_lead_somewhere(link):
    assert (PATH.parent / link).exists()
