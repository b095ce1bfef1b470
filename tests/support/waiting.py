"""Wait for what must happen sooner or later, on any machine."""

import time

PATIENCE = 60.0
"""Seconds until a test gives up."""


def until(condition, seconds=PATIENCE):
    """Wait until a function returns something true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.005)
