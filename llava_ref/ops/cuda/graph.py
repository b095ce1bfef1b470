"""Record what a function launches on a CUDA device, so that all of it is launched at once the next time."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def record(launch: Callable[[], T]) -> tuple[Any, T]:
    """Return a `torch.cuda.CUDAGraph` of `launch`, and what `launch` returned: memory that every replay writes again.

    `launch` runs once before, which compiles kernels and makes what it keeps; recorded, it may copy nothing from
    pageable memory and wait for nothing."""
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        launch()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a server's other threads go on
        found = launch()
    return graph, found
