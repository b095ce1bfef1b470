"""`inspect` on any GGUF file, and every verdict of `check`."""

import json
import re
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from llava_ref.cli import main

from ..support.gguf_files import Tensor, build
from ..support.rewriting import changed
from ..support.tiny_pair import VICUNA, Tiny, write_mmproj, write_pair, write_text


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), Tiny(template=VICUNA, type="Q8_0", feature_layer=2))


@pytest.fixture
def run(capsys):
    def call(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def parsed(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_inspect_a_text_model(run, pair):
    status, out, _ = run("inspect", pair[0], "--json")
    got = parsed(out)
    assert status == 0 and (got["kind"], got["supported"], got["problem"]) == ("text model", True, None)
    assert got["tensors"][0] == {"name": "token_embd.weight", "type": "Q8_0", "shape": [372, 32], "bytes": 372 * 34}
    assert got["types"]["Q8_0"] == {"tensors": 16, "weights": 40_192 + 2048, "bytes": (40_192 + 2048) // 32 * 34}
    assert sum(entry["bytes"] for entry in got["types"].values()) == got["n_bytes"]
    assert got["metadata"]["llama.block_count"] == 2
    assert got["metadata"]["tokenizer.ggml.tokens"]["length"] == 372
    assert got["metadata"]["tokenizer.ggml.tokens"]["first"][:3] == ["<unk>", "<s>", "</s>"]
    assert got["text"]["head_size"] == 8 and got["text"]["end_tokens"] == {"</s>": 2}
    assert (got["text"]["template"], got["text"]["template_with_mmproj"]) == ("file", "file")


@pytest.mark.parametrize(
    "feature_layer, want", [(None, {"llava": 3, "hf": 3, "llama.cpp": 2}), (2, {"llava": 2, "hf": 2, "llama.cpp": 2})]
)
def test_inspect_an_mmproj_file(run, tmp_path, feature_layer, want):
    path = write_mmproj(tmp_path / "mmproj.gguf", Tiny(feature_layer=feature_layer))
    got = parsed(run("inspect", path, "--json", "--profile", "llama.cpp", "--quirk", "gelu=erf")[1])
    pipeline = got["image_pipeline"]
    assert got["kind"] == "mmproj" and got["profile"] == "llama.cpp" and got["quirks"]["gelu"] == "erf"
    assert (pipeline["image_size"], pipeline["patch_size"], pipeline["tokens_per_image"]) == (28, 7, 16)
    assert pipeline["square"] == "resize-pad" and pipeline["class_token"] == "last"
    assert pipeline["blocks_run_by_profile"] == want and pipeline["blocks_run"] == want["llama.cpp"]
    assert pipeline["activation"] == "gelu_quick" and pipeline["projector_activation"] == "gelu_erf"
    assert pipeline["output_width"] == 32


def test_inspect_for_people(run, pair):
    status, out, err = run("inspect", pair[1])
    assert (status, err) == (0, "")
    for words in ("mmproj, architecture clip", "v.patch_embd.weight", "24 x 3 x 7 x 7", "28 x 28 pixels", "quick GELU"):
        assert words in out
    out = run("inspect", pair[0])[1]
    assert "372 elements: <unk>, <s>, </s>" in out and "4 over 2 for keys and values" in out


def odd_file(path):
    """A file of an unknown architecture with values that are hard to print."""
    writer = gguf.GGUFWriter(path, "phi3")
    writer.add_name("red \x1b[31m\nand\u202e bidi")
    writer.add_string("key\x1b[2J", "clears the screen")
    writer.add_float32("a.nan", float("nan"))
    writer.add_float64("an.infinity", float("-inf"))
    writer.add_array("a.nest", [[1, 2], [3]])
    writer.add_array("many", list(range(1000)))
    writer.add_bool("yes", True)
    writer.add_tensor("one", np.ones((3, 5), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_inspect_reads_what_it_cannot_run(run, tmp_path):
    path = odd_file(tmp_path / "odd.gguf")
    got = parsed(run("inspect", path, "--json")[1])
    assert (got["kind"], got["architecture"], got["supported"]) == ("other", "phi3", False)
    assert got["metadata"]["a.nan"] == "nan" and got["metadata"]["an.infinity"] == "-inf"
    assert got["metadata"]["many"] == {"length": 1000, "first": list(range(8))} and got["metadata"]["yes"] is True
    assert got["metadata"]["a.nest"] == [[1, 2], [3]]
    status, out, _ = run("inspect", path)
    assert status == 0 and "not supported here" in out
    assert all(c.isprintable() for c in out.replace("\n", "")), "nothing from the file reaches the terminal unescaped"
    assert "\\x1b[31m\\nand\\u202e bidi" in out and "key\\x1b[2J" in out


def test_inspect_says_why_a_model_is_not_supported(run, tmp_path):
    path = write_mmproj(tmp_path / "other.gguf", Tiny(projector="resampler"))
    got = parsed(run("inspect", path, "--json")[1])
    assert got["kind"] == "mmproj" and not got["supported"] and "'resampler'" in got["problem"]


def test_inspect_renders_no_template_and_reads_no_weight(run, tmp_path, monkeypatch):
    from llava_ref.chat import sandbox
    from llava_ref.ops import numpy_quants as quants

    path = write_text(tmp_path / "text.gguf", Tiny(template="{{ 1 / 0 }}" + "x" * 5000))
    monkeypatch.setattr(sandbox, "run", lambda *a: pytest.fail("rendered a template"))
    monkeypatch.setattr(quants, "dequantize", lambda *a: pytest.fail("read a weight"))
    status, out, _ = run("inspect", path)
    assert status == 0 and "x" * 200 not in out


def test_a_big_header_is_quick(run, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama")
    writer.add_token_list([f"token{i}" for i in range(150_000)])
    writer.add_token_scores([0.0] * 150_000)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    began = time.process_time()
    got = parsed(run("inspect", tmp_path / "big.gguf", "--json")[1])
    assert got["metadata"]["tokenizer.ggml.tokens"]["length"] == 150_000
    assert time.process_time() - began < 5, "0.3 s when this was written"


def verdicts(out):
    return {check["what"]: check["ok"] for check in parsed(out)["checks"]}


def check(run, text, mmproj):
    status, out, err = run("check", "-m", text, "--mmproj", mmproj, "--json")
    assert err == ""
    assert parsed(out)["fits"] == (status == 0)
    return status, verdicts(out), {check["what"]: check["says"] for check in parsed(out)["checks"]}


ALL = {"text model", "vocabulary", "template", "vision tower", "width", "feature layer", "positions"}


def test_a_pair_that_fits(run, pair):
    status, found, says = check(run, *pair)
    assert status == 0 and found == dict.fromkeys(ALL, True)
    assert "rows of 32" in says["width"] and "every profile runs 2 of 3" in says["feature layer"]
    assert "'<s>USER: <image>\\nWhat is this? ASSISTANT:'" in says["template"]
    assert says["positions"] == "a picture takes 16 of 128 positions"
    status, out, _ = run("check", "-m", pair[0], "--mmproj", pair[1])
    assert status == 0 and out.endswith("these files fit each other\n")


def test_blocks_that_profiles_disagree_on_are_a_warning(run, pair, tmp_path):
    status, found, says = check(run, pair[0], write_mmproj(tmp_path / "mmproj.gguf", Tiny()))
    assert status == 0 and found["feature layer"] is None
    assert "llava 3, hf 3, llama.cpp 2" in says["feature layer"]


def test_widths_that_differ(run, pair, tmp_path, monkeypatch):
    status, found, says = check(run, pair[0], write_mmproj(tmp_path / "wide.gguf", Tiny(projected=40)))
    assert status == 1 and {what for what, ok in found.items() if ok is False} == {"width"}
    assert (
        "mm.2.weight [40, 45]: rows of 40" in says["width"] and "embedding_length is 32: 40 is not 32" in says["width"]
    )
    status, out, _ = run("check", "-m", pair[0], "--mmproj", tmp_path / "wide.gguf")
    assert status == 1 and "\nNO      width" in out and out.endswith("\nthese files do not fit each other\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, out, _ = run("check", "-m", pair[0], "--mmproj", tmp_path / "wide.gguf")
    assert "\n\x1b[31mNO      width" in out and out.endswith("\x1b[31mthese files do not fit each other\x1b[0m\n")
    assert out.count("\x1b[31m") == 2


def test_every_reason_is_named(run, tmp_path):
    text = write_text(tmp_path / "text.gguf", Tiny(template="a template that drops everything", n_head_kv=3))
    mmproj = write_mmproj(tmp_path / "mmproj.gguf", Tiny(projector="resampler", projected=40))
    status, found, says = check(run, text, mmproj)
    assert status == 1 and {what for what, ok in found.items() if ok is False} == {
        "text model", "template", "vision tower", "width",
    }  # fmt: skip
    assert "head_count" in says["text model"] and "'resampler'" in says["vision tower"]


def test_no_room_for_a_question(run, pair, tmp_path):
    text = write_text(tmp_path / "text.gguf", Tiny(context=16))
    status, found, says = check(run, text, pair[1])
    assert status == 1 and found["positions"] is False and "no room" in says["positions"]


def test_an_architecture_that_cannot_run_still_has_a_width(run, pair, tmp_path):
    data = (
        pair[0]
        .read_bytes()
        .replace(b"llama.", b"qwen3.")
        .replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0qwen3", 1)
    )
    (tmp_path / "qwen3.gguf").write_bytes(data)
    status, found, says = check(run, tmp_path / "qwen3.gguf", pair[1])
    assert status == 1 and found["text model"] is False and found["width"] is True
    assert "qwen3.embedding_length is 32: equal" in says["width"]


def test_files_that_are_not_what_they_should_be(run, pair, tmp_path):
    odd = odd_file(tmp_path / "odd.gguf")
    for text, mmproj, words in (
        (pair[1], pair[0], "this is an mmproj file, expected a text model"),
        (pair[0], pair[0], "this is a text model, expected an mmproj file"),
        (odd, pair[1], "neither"),
        (tmp_path / "nowhere.gguf", pair[1], "No such file"),
    ):
        status, out, err = run("check", "-m", text, "--mmproj", mmproj)
        assert (status, out) == (2, "") and err.startswith("error: ") and words in err
    assert run("check", "-m", pair[0])[0] == 2, "half a pair"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("plain"), Tiny(template=VICUNA, feature_layer=2))


def test_check_says_that_sampling_is_asked_for(run, plain, tmp_path):
    def ask(keys, tensors):
        keys["general.sampling.temp"] = (0.5, gguf.GGUFValueType.FLOAT32, None)

    status, found, says = check(run, changed(plain[0], tmp_path / "cool.gguf", ask), plain[1])
    assert status == 0 and found["sampling"] is None and says["sampling"].startswith("general.sampling.temp: defaults")


def odd_tensors(path):
    """Tensors that no model has: a scalar, and some without an element, at places where others begin."""
    content = build(
        [("general.architecture", "string", "llama")],
        [Tensor("empty", ne=(0, 4), data=b""), Tensor("scalar", ne=()), Tensor("a", "I8", (40,), offset=32),
         Tensor("none", "Q8_0", (0,), data=b"", offset=32), Tensor("inside", ne=(4, 0), data=b"", offset=64)],
    )  # fmt: skip
    path.write_bytes(content)
    return path


def test_inspect_lists_empty_and_scalar_tensors(run, tmp_path):
    path = odd_tensors(tmp_path / "odd.gguf")
    got = parsed(run("inspect", path, "--json")[1])
    shapes = {"empty": [4, 0], "scalar": [], "a": [40], "none": [0], "inside": [0, 4]}
    assert {t["name"]: t["shape"] for t in got["tensors"]} == shapes and got["n_weights"] == 41
    status, out, _ = run("inspect", path)
    assert (
        status == 0
        and re.search(r"scalar +F32 +scalar +4 bytes", out)
        and re.search(r"empty +F32 +4 x 0 +0 bytes", out)
    )


def test_inspect_a_vocabulary_without_weights(run, plain, tmp_path):
    path = changed(plain[0], tmp_path / "vocabulary.gguf", lambda keys, tensors: tensors.clear())
    got = parsed(run("inspect", path, "--json")[1])
    assert (got["kind"], got["supported"], got["problem"]) == ("vocabulary", False, "a vocabulary without weights")
    assert got["text"] == {"vocabulary": 372, "tokenizer": "llama", "add_bos": True, "end_tokens": {"</s>": 2}}
    status, out, _ = run("inspect", path)
    assert status == 0 and "372 tokens (llama), BOS first" in out and "answers end       </s>" in out
    status, _, err = run("check", "-m", path, "--mmproj", plain[1])
    assert status == 2 and "this is a vocabulary without weights, expected a text model" in err


VOCABULARIES = sorted((Path(__file__).parents[3] / "shared/data/vocab").glob("*.gguf"))


@pytest.mark.skipif(not VOCABULARIES, reason="the vocabularies of llama.cpp's own tests are not here")
@pytest.mark.parametrize("path", VOCABULARIES, ids=lambda path: path.name)
def test_inspect_real_vocabularies(run, path):
    got = parsed(run("inspect", path, "--json")[1])
    assert got["kind"] == "vocabulary" and got["text"]["vocabulary"] > 30_000 and got["text"]["end_tokens"]
