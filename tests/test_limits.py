"""The table of limits in the docs is the one in the code."""

import re
from importlib import import_module
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "limits.md").read_text()
ROWS = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and "`" in line]
HOME = r"`([a-z_.]+\.[A-Z_]+|[a-z_.]+\.Limits\.[a-z_]+)`"
CONSTANTS = [(limit, home) for _, limit, homes in ROWS for home in re.findall(HOME, homes)]


@pytest.mark.parametrize("limit, home", CONSTANTS, ids=[home for _, home in CONSTANTS])
def test_a_limit_is_the_constant(limit, home):
    if home.startswith(("api.", "batch.")):
        pytest.importorskip("starlette", reason="the server extra is not installed")
    module, name = home.rsplit(".", 1)
    place = import_module(f"llava_ref.{module.removesuffix('.Limits')}")
    value = getattr(place.Limits() if module.endswith(".Limits") else place, name)
    stated = {int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", limit)}
    values = set(value.values()) if isinstance(value, dict) else {value}
    assert values & stated, f"{home} is {value}, the page says {limit}"


def test_the_page_has_the_limits():
    assert len(CONSTANTS) >= 44
