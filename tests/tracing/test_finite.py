"""The first array with NaN or infinity is named, with its place; the largest number of every stage is found."""

import numpy as np
import pytest
from PIL import Image

from llava_ref import NumericsError, load
from llava_ref.cli import main
from llava_ref.tracing.edits import Edits
from llava_ref.tracing.finite import FLOAT16, Magnitudes, RefuseNotFinite
from llava_ref.tracing.trace import At

from ..support.rewriting import changed
from ..support.tiny_pair import VICUNA, Tiny, write_pair

PROMPT = [1, 5, 9, 7]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    Image.fromarray(np.full((9, 13, 3), 200, np.uint8)).save(folder / "a.png")
    return *write_pair(folder, Tiny(template=VICUNA)), folder / "a.png"


@pytest.fixture(scope="module")
def model(pair):
    return load(*pair[:2], backend="numpy")


def put(number, row, column):
    def function(x):
        x[row, column] = number
        return x

    return function


@pytest.mark.parametrize("number, word", [(np.nan, "NaN"), (-np.inf, "infinity")])
def test_the_first_bad_number_is_placed(model, number, word):
    """Behind a norm an infinity is gone, or a NaN everywhere: the array where it began is named."""
    probe = RefuseNotFinite(model.ops, model.text.file.path, None)
    with model.intervene({"blk.0.ffn_norm": put(number, 2, 3)}), model.probed(probe):
        with pytest.raises(NumericsError) as caught:
            model.session().feed([PROMPT])
    assert caught.value.field == "blk.0.ffn_norm"
    assert f"holds {word} at position 2, element 3, the first array to do so: 1 of 4 x " in str(caught.value)


def test_rows_are_placed_by_their_position(model):
    session = model.session()
    session.feed([PROMPT])
    with model.intervene({"blk.1.out": put(np.inf, 0, 1)}), model.probed(RefuseNotFinite(model.ops, "t.gguf", None)):
        with pytest.raises(NumericsError, match="position 4, element 1, .* 1 of 1 x "):
            session.next([[7]])


def test_the_largest_number_of_every_stage(model):
    probe = Magnitudes(model.ops)
    with model.intervene({"blk.1.ffn_out": put(-70_000, 1, 2)}), model.probed(probe), model.trace("*") as trace:
        model.session().feed(
            [PROMPT[:2], model.encode_image(np.full((9, 13, 3), 200, np.uint8)), PROMPT], all_logits=True
        )
    assert list(probe.stages) == list(trace)
    for name, found in probe.stages.items():
        assert found.largest == np.abs(trace[name].astype(np.float64)).max(), name
    out = probe.stages["blk.1.ffn_out"]
    assert out.largest == 70_000 and out.headroom == FLOAT16 / 70_000 < 1
    assert out.place == "position 1, element 2"
    assert np.abs(trace["vision.pixels"]).max() == probe.stages["vision.pixels"].largest
    assert probe.stages["vision.pixels"].place.startswith("index [")
    row, *element = np.unravel_index(np.abs(trace["blk.0.Qcur_rope"]).argmax(), trace["blk.0.Qcur_rope"].shape)
    assert probe.stages["blk.0.Qcur_rope"].place == f"position {row}, element {[int(i) for i in element]}"


def test_numbers_that_are_none_have_no_room(model):
    probe = Magnitudes(model.ops)
    probe.see(np.array([[1, np.nan], [np.inf, 2]], np.float32), At("x", range(2), 0))
    assert probe.stages["x"].largest == np.inf and probe.stages["x"].headroom == 0


def test_a_later_row_counts_only_where_it_is_larger(model):
    probe = Magnitudes(model.ops)
    for start, rows in ((0, [[1.0, -3.0]]), (1, [[2.0, 3.0]]), (2, [[0.0, 4.0]])):
        probe.see(np.array(rows, np.float32), At("x", range(start, start + 1), 0))
        assert probe.stages["x"].place == f"position {0 if start < 2 else 2}, element 1"


def test_every_array_is_looked_at_where_that_is_asked_for(pair, monkeypatch, capsys):
    """The last block's rows in front of the last position reach no logits of an answer."""
    text, mmproj, picture = pair
    ask = ["generate", "-m", str(text), "--mmproj", str(mmproj), "--image", str(picture), "-p", "a", "-n", "2"]

    def only_first(x, at):
        return put(np.inf, 0, 3)(x) if at.positions is None or 0 in at.positions else x

    def planted(stage):
        def load_planted(*paths, **settings):
            model = load(*paths, **settings)
            model.probes.add(Edits({stage: only_first}, model.ops))
            return model

        monkeypatch.setattr("llava_ref.tools.options.load", load_planted)

    for backend in ("numpy", "torch"):
        planted("blk.1.ffn_up")
        assert main([*ask, "--backend", backend]) == 0
        capsys.readouterr()
        assert main([*ask, "--backend", backend, "--check-finite"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {text}: blk.1.ffn_up: holds infinity at position 0, element 3, the first ")
        assert said.endswith(" x 64 numbers\n")
        planted("vision.blk.2.ffn_out")
        assert main([*ask, "--backend", backend, "--check-finite"]) == 2
        assert f"error: {mmproj}: vision.blk.2.ffn_out: holds infinity at index [0, 3]" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*ask, "--check-finite"]) == 0


@pytest.mark.parametrize("option", [[], ["--check-finite"]])
def test_an_infinity_in_a_weight_is_named_where_it_comes_in(option, pair, tmp_path, capsys):
    def planted(keys, tensors):
        tensors["blk.1.ffn_up.weight"][5, 2] = np.inf

    text = changed(pair[0], tmp_path / "planted.gguf", planted)
    assert main(["generate", "-m", str(text), "-p", "a", "-n", "2", *option]) == 2
    said = capsys.readouterr().err
    assert f"error: {text}: blk.1.ffn_up: holds infinity at position 0, element 5, the first array" in said
