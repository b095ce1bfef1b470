"""Tests that the server shows the documentation of its version: all pages, their links, anchors and pictures."""

import re
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from .running import serving

DOCS = Path(__file__).parents[2] / "docs"
NAMES = sorted(path.name for path in DOCS.glob("*.md"))
KINDS = {"webp": "image/webp", "svg": "image/svg+xml"}
ELSEWHERE = re.compile(r"https?://")


@pytest.fixture(scope="module")
def pages():
    """Return the pages of a server with a key, which none of them needs."""
    with serving(api_key="key") as locked:
        answers = {name: locked.client.get(f"/docs/{name}") for name in NAMES}
        assert {answer.status_code for answer in answers.values()} == {200}
        yield {name: answer.text for name, answer in answers.items()}, locked


def test_links_lead_to_pages_and_anchors_that_are_there(pages):
    texts, _ = pages
    anchors = {name: set(re.findall(r'<h\d id="([^"]+)"', text)) for name, text in texts.items()}
    found = 0
    for name, text in texts.items():
        for link in re.findall(r'<a href="([^"]+)"', text.partition("</nav>")[2]):
            if ELSEWHERE.match(link):
                continue
            target, _, anchor = link.partition("#")
            assert (target or name) in texts, (name, link)
            assert not anchor or anchor in anchors[target or name], (name, link)
            found += 1
    assert found > 150


def test_what_is_not_served_is_no_link(pages):
    index = pages[0]["README.md"]
    assert "a notebook, " in index and ">a notebook<" not in index and '<a href="gallery.md">the gallery</a>' in index
    assert "<title>Documentation – llava_ref</title>" in index


def test_pictures_are_there_and_nothing_is_loaded_from_elsewhere(pages):
    texts, locked = pages
    pictures = {source for text in texts.values() for source in re.findall(r'<img src="([^"]+)"', text)}
    assert len(pictures) > 20
    for source in pictures:
        answer, kind = locked.client.get(f"/docs/{source}"), KINDS[source.rpartition(".")[2]]
        assert answer.headers["content-type"] == kind and answer.content == next(DOCS.rglob(source)).read_bytes()
    policy = locked.client.get("/docs/server.md").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src 'self';")


@pytest.mark.parametrize("name", ["nothing.md", "tables", "__init__.py", "..%2FREADME.md", "images%2Fpage.webp", "%00"])
def test_no_other_file_is_served(pages, name):
    assert pages[1].error(pages[1].client.get(f"/docs/{name}"))[0] == 404
