"""One server for the tests that change nothing about it."""

import pytest


@pytest.fixture(scope="session")
def server():
    running = pytest.importorskip("tests.api.running")
    with running.serving() as it:
        yield it
