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


@pytest.fixture(scope="session")
def model():
    """The embedded pair in this process, apart from every server's."""
    import llava_ref

    return llava_ref.load(*llava_ref.embedded(), threads=1)


@pytest.fixture
def client(server):
    """OpenAI's Python client, which refuses a response that lacks a field or has another type."""
    openai = pytest.importorskip("openai", reason="OpenAI's package is not installed")
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="any", _strict_response_validation=True, max_retries=0
    ) as it:
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
