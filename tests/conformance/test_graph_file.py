"""A trace file with llama.cpp's graphs: stages by its names, and a line for a graph that is none."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import llava_ref
from llava_ref.conformance.engines.reference import Case, ReferenceError
from llava_ref.conformance.engines.this import Recorded

NORM = ["0 norm-0", "RMS_NORM", "embd"]


def run(folder, graph, **arrays):
    path = folder / "trace.safetensors"
    save_file({"token_ids": np.array([1]), **arrays}, path, {"graph": json.dumps(graph)})
    return Recorded(path).run(Case(*llava_ref.embedded(), (), "x"))


def test_stages_have_our_names(tmp_path):
    x = np.arange(8, dtype=np.float32).reshape(1, 1, 2, 4)
    graph = ["decoder", ["0 embd"], ["1 norm-0", "RMS_NORM", "0 embd"], ["2 attn_norm-0", "MUL", "1 norm-0", "w"]]
    graph += [["3 l_out-0", "ADD", "2 attn_norm-0", "0 embd"]]
    named = {"0 embd": x, "1 norm-0": -x, "2 attn_norm-0": 2 * x, "3 l_out-0": 3 * x, "image.rgb": x}
    found = run(tmp_path, graph, **named)
    assert list(found.stages) == ["image.rgb", "token_ids", "embd", "blk.0.attn_norm", "blk.0.out"]
    assert (found.stages["embd"] == x[0, 0]).all() and (found.stages["blk.0.out"] == 3 * x[0, 0]).all()
    assert not found.chosen


@pytest.mark.parametrize(
    "graph, says",
    [
        ([7], 'graph: \'7\', expected "picture", "decoder" or [KEY, OPERATION, SOURCE, ...]'),
        ([[]], "graph: '[]', expected"),
        ([["0 x", 1]], "graph: \"['0 x', 1]\", expected"),
        ({}, "__metadata__.graph: '{}' is not a JSON list"),
        (["decoder", NORM], "graph: needs 'embd', expected a tensor of this name in the file"),
        (["picture", ["0 x", "IM2COL", "w"]], "graph: needs 'source 1 of 0 x'"),
        (["decoder", ["7 l_out-0", "ADD"]], "graph: needs '7 l_out-0'"),
        (
            ["decoder", ["1 l_out-0", "ADD"], "decoder", ["2 l_out-0", "ADD"]],
            "graph: its tensors do not join",
        ),
    ],
)
def test_a_graph_that_is_none(tmp_path, graph, says):
    with pytest.raises(ReferenceError) as caught:
        run(tmp_path, graph, **{"1 l_out-0": np.zeros((2, 3)), "2 l_out-0": np.zeros((2, 4))})
    assert says in str(caught.value)
