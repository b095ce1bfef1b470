"""Provides servers for all tests that do not change their state."""

import pytest


@pytest.fixture(scope="session")
def server():
    running = pytest.importorskip("tests.api.running")
    with running.serving() as it:
        yield it


@pytest.fixture(scope="session")
def strict():
    """The same with the option `--strict`."""
    running = pytest.importorskip("tests.api.running")
    with running.serving(strict=True) as it:
        yield it


@pytest.fixture(scope="package")
def browser(tmp_path_factory):
    """Headless Chromium with one page, ended before the tests of other folders, which count child processes."""
    from .browser import BrowserPage

    with BrowserPage(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser, server):
    """The freshly opened page, in the wide layout."""
    from .conversing import opened

    return opened(browser, server.url)
