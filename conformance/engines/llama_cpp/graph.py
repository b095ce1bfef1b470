"""Name the stages of a trace file that holds llama.cpp's graphs as they ran, tensor by tensor.

A program over llama.cpp's evaluation callback writes such a file (`examples/llama_cpp/trace.cpp`): every tensor under
its number and name, `17 Qcur-0`, and in the header's `__metadata__` the list `graph`. It holds `"picture"` before each
picture's graph, `"decoder"` before each of the text model's, and for every tensor `[KEY, OPERATION, SOURCE, ...]`, an
input `[KEY]` alone; a source is a key, or the name of a weight.
"""

import numpy as np

from llava_ref.tracing.tracefile import TraceFile

from ..reference import ReferenceError
from ..stages import ordered
from .stages import Node, Recorder, with_axes


def stages(trace: TraceFile) -> dict[str, np.ndarray]:
    """Return the stages of a trace file's `graph`, and what else it holds under names of its own.

    Raises ReferenceError for a graph that is no such list, or needs a tensor that the file does not hold."""
    recorder, names = Recorder(["*"]), dict[str, str]()  # key -> name
    for line in trace.fact("graph", []):
        if line == "picture":
            recorder.picture()
        elif line == "decoder":
            recorder.decoder()
        elif isinstance(line, list) and line and all(isinstance(word, str) for word in line):
            key, *made = line
            names[key] = key.partition(" ")[2]
            if made:
                recorder.see(_node(trace, key, made[0], made[1:], names))
        else:
            expected = '"picture", "decoder" or [KEY, OPERATION, SOURCE, ...]'
            raise ReferenceError(str(trace.path), "graph", f"{str(line)[:60]!r}, expected {expected}")
    try:
        found = recorder.arrays()
    except ValueError as error:  # a stage's pieces of several graphs
        raise ReferenceError(str(trace.path), "graph", f"its tensors do not join: {error}") from None
    return ordered({name: trace[name] for name in trace if name not in names} | found)


def _node(trace: TraceFile, key: str, op: str, sources: list[str], names: dict[str, str]) -> Node:
    return Node(
        name=names[key],
        op=op,
        sources=tuple(names.get(source, source) for source in sources),
        array=lambda axes: _array(trace, key, axes),
        source=lambda i, axes: _array(trace, sources[i] if i < len(sources) else f"source {i} of {key}", axes),
    )


def _array(trace: TraceFile, key: str, axes: int) -> np.ndarray:
    if key not in trace:
        raise ReferenceError(str(trace.path), "graph", f"needs {key!r}, expected a tensor of this name in the file")
    return with_axes(trace[key], axes)
