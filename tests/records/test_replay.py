"""A recorded run comes out the same to the bit; where it does not, the first array that differs is named."""

import json
import shutil
from collections import deque
from importlib.util import find_spec

import numpy as np
import pytest

from llava_ref import load
from llava_ref.chat.call_form import PLAIN
from llava_ref.chat.calls import Tool
from llava_ref.generation.grammar import JsonGrammars
from llava_ref.generation.sampling import Sampling
from llava_ref.generation.together import together
from llava_ref.records.comparison import compare
from llava_ref.records.record import hashed_files, read_record
from llava_ref.records.recording import Recording, repeat
from llava_ref.records.request import RecordedRequest
from llava_ref.tracing.trace import Probe

from ..support.rewriting import changed
from ..support.sharing import load_sharing
from ..support.tiny_pair import VICUNA, Tiny, write_pair
from .conftest import ASK, PAIR

COMPILED = pytest.mark.skipif(find_spec("llvmlite") is None, reason="the extra fast is not installed")


def test_a_recorded_run_repeated_gives_the_same_bits(cli):
    status, out, err = cli("replay", "run.json", *PAIR)
    record = read_record("run.json")
    arrays = sum(len(one.arrays) for one in record.passes)
    assert (status, err) == (0, "") and len(record.answer.token_ids) == 4 and arrays > 200
    assert out == f"answer: the same, 4 tokens\nthe same to the bit: {arrays:,} arrays\n"


@pytest.mark.parametrize(
    "more",
    [
        ["--temp", "3", "--top-k", "50", "--logit-bias", "300=2"],
        ["--raw", "-p", "a <image> is", "--stop", "z"],
        ["--system", "the one", "--quirk", "gelu=tanh", "--template", "chatml", "-t", "1", "-c", "125"],
        ["--precision", "ggml", "--profile", "llama.cpp", "--backend", "torch"],
        pytest.param(["--precision", "fast", "--backend", "torch", "-t", "2"], marks=COMPILED),
    ],
)
def test_everything_that_decides_a_run_is_recorded(more, cli, made):
    status, plain, _ = cli("generate", *ASK, *more, "--seed", "5", "--json")
    assert status == 0
    given = [] if "--temp" in more else ["--seed", "5"]  # without one, the record has the seed that was drawn
    status, recorded, _ = cli("generate", *ASK, *more, *given, "--json", "--record", "more.json")
    if given:
        same = ("token_ids", "text", "prompt", "chunks")
        assert [json.loads(plain)[name] for name in same] == [json.loads(recorded)[name] for name in same]
    assert read_record(made / "more.json").answer.token_ids == json.loads(recorded)["token_ids"]
    status, out, _ = cli("replay", "more.json", *PAIR)
    assert status == 0 and "the same to the bit" in out


def test_functions_and_the_form_of_calls_are_recorded(tmp_path):
    """The answer must be a call; the conversation has one already, with its result."""
    pytest.importorskip("llguidance", reason="the server extra is not installed")
    model = load(*write_pair(tmp_path, Tiny(context=512, template=VICUNA)), backend="numpy")
    look = Tool("look", "Looks.", {"type": "object", "properties": {"at": {"enum": ["red", "blue"]}}})
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at": "red"}'}}
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "the"}]  # fmt: skip
    asked = RecordedRequest.conversation(talk, tools=[look])
    grammar = JsonGrammars(model.tokenizer).calls(PLAIN, [look], several=False, text=False)
    sampling = Sampling(temperature=3.0, seed=1, grammar=grammar)
    request, recording = asked.request(model), Recording(model, asked, sampling, 60, ())
    with model.probed(recording.hashes):
        reply = model.answer(request, sampling, max_tokens=60).finish()
    path = tmp_path / "call.json"
    path.write_bytes(recording.record(hashed_files(model), request, reply).text())
    record = read_record(path)
    assert reply.text.startswith('{"name": "look"') and record.asked.request(model).prompt.shown == request.prompt.shown
    assert '"at": "red"' in request.prompt.shown and "Looks." in request.prompt.shown
    assert repeat(record, model) == record


@pytest.mark.parametrize("n", ["0", "2"])
def test_a_trace_and_logits_are_recorded_too(n, cli, made):
    assert cli("trace", *ASK, "-n", n, "-o", "t.safetensors", "--names", "embd", "--record", "trace.json")[0] == 0
    assert cli("logits", *ASK[:-4], "--backend", "numpy", "-o", "l.safetensors", "--record", "logits.json")[0] == 0
    assert cli("replay", "trace.json", *PAIR)[0] == cli("replay", "logits.json", *PAIR)[0] == 0
    trace, logits = read_record(made / "trace.json"), read_record(made / "logits.json")
    assert logits.answer is None and (trace.passes == logits.passes) == (n == "0")


def test_across_backends_the_first_stage_that_differs_is_named(cli, made):
    runs = []
    for backend in ("numpy", "torch"):
        model = load(made / "text.gguf", made / "mmproj.gguf", backend=backend)
        asked = [{"type": "image", "image": "picture.png"}, {"type": "text", "text": "what is in the picture?"}]
        with model.trace() as trace:
            model.chat([{"role": "user", "content": asked}], max_tokens=4)
        runs.append(trace)
    first = next(name for name in runs[0] if not np.array_equal(runs[0][name], runs[1][name]))
    assert first.startswith("vision.") and list(runs[0])[0] == "image.rgb"
    status, out, _ = cli("replay", "run.json", *PAIR, "--backend", "torch")
    assert status == 1 and "backend: recorded with numpy, here torch" in out
    assert f"differs from {first} on: {list(runs[0]).index(first)} of " in out
    status, out, _ = cli("replay", "run.json", *PAIR, "--backend", "torch", "--json")
    found = json.loads(out)
    assert status == 1 and not found["same"] and found["from"] == found["first"]["here"]["stage"] == first
    assert found["settings"]["backend"] == ["numpy", "torch"]


class Planted(Probe):
    """Changes one number of one stage, at one position."""

    edits = True

    def __init__(self, stage, position):
        super().__init__([stage])
        self.position = position

    def see(self, x, at):
        if at.positions is None or self.position in at.positions:
            x = x.copy()
            x.reshape(-1)[-1] = np.nextafter(x.reshape(-1)[-1], np.float32(9), dtype=np.float32)
        return x


@pytest.mark.parametrize("stage, token", [("vision.blk.1.ffn_out", None), ("blk.1.ffn_up", 0), ("blk.1.Vcur", 2)])
def test_the_smallest_change_is_found_where_it_is(stage, token, made):
    """Also in the middle of an answer, whose stages before that token are all the same."""
    record = read_record(made / "run.json")
    model = load(made / "text.gguf", made / "mmproj.gguf", backend="numpy")
    position = len(record.prompt_ids) + (token or 0)
    with model.probed(Planted(stage, position)):
        found = compare(record, repeat(record, model))
    where = stage if token is None else f"{stage} at position {position}"
    assert not found.same and found.place == where and 0 < found.arrays_same < found.arrays
    assert compare(record, repeat(record, model)).same


def test_a_change_in_the_record_is_found_where_it_is(replayed):
    def hashed(record):
        one = record["passes"][-2]
        name = one["arrays"][7].split()[0]
        one["arrays"][7] = f"{name} {'0' * 32}"

    status, out, _ = replayed(hashed)
    assert status == 1 and "differs from blk." in out and "answer: the same, 4 tokens" in out

    status, out, _ = replayed(lambda record: record["passes"].pop() and None)
    assert status == 1 and "differs from embd at position " in out, "the run goes on where the record ends"

    status, out, _ = replayed(lambda record: record["prompt_ids"].insert(3, 7))
    assert status == 1 and "differs from token_ids at position 3 on" in out

    status, out, _ = replayed(lambda record: record["answer"]["token_ids"].__setitem__(1, 9))
    assert status == 1 and "answer: differs from token 2 on" in out and "differs from answer on" in out

    status, out, _ = replayed(lambda record: record["answer"].update(text="other"))
    assert status == 1 and "answer: differs, 4 tokens" in out


def test_other_versions_are_named_and_no_difference(replayed):
    status, out, _ = replayed(lambda record: record["versions"].update(numpy="1.0\x1b", card="none"))
    assert (
        status == 0 and "numpy: recorded with 1.0\\x1b, here " in out and "card: recorded with none, here None" in out
    )


def test_another_weight_is_refused_with_both_hashes(cli, made, tmp_path):
    def one_weight(keys, tensors):
        tensors["blk.1.ffn_up.weight"].reshape(-1)[5] += 1

    other = changed(made / "text.gguf", tmp_path / "other.gguf", one_weight)
    status, out, err = cli("replay", "run.json", "-m", str(other), "--mmproj", "mmproj.gguf")
    recorded = read_record(made / "run.json").files["text"][0]
    assert (status, out) == (2, "") and err.startswith("error: --model: SHA-256: recorded text.gguf ")
    assert recorded.sha256 in err and err.count("other.gguf ") == 1
    assert "recorded mmproj.gguf " in cli("replay", "run.json", "-m", "text.gguf")[2]
    assert "the embedded pair" in cli("replay", "run.json")[2]
    shutil.copy("text.gguf", tmp_path / "renamed.gguf")
    assert cli("replay", "run.json", "-m", str(tmp_path / "renamed.gguf"), "--mmproj", "mmproj.gguf")[0] == 0


def test_every_file_of_a_split_model_is_hashed(cli, made, tmp_path):
    u16, i32 = 2, 5

    def part(number):
        def change(keys, tensors):
            count = len(tensors)
            for name in list(tensors)[::2] if number else list(tensors)[1::2]:
                del tensors[name]
            keys |= {"split.no": (number, u16, None), "split.count": (2, u16, None)}
            keys |= {"split.tensors.count": (count, i32, None)}

        return changed(made / "text.gguf", tmp_path / f"t-0000{number + 1}-of-00002.gguf", change)

    first, second = str(part(0)), part(1)
    pair = ["-m", first, "--mmproj", "mmproj.gguf"]
    assert cli("generate", *pair, *ASK[4:], "--record", str(tmp_path / "split.json"))[0] == 0
    assert [file.name[:7] for file in read_record(tmp_path / "split.json").files["text"]] == ["t-00001", "t-00002"]
    assert cli("replay", str(tmp_path / "split.json"), *pair)[0] == 0
    second.write_bytes(second.read_bytes()[:-1] + b"\x3f")
    assert "recorded t-00002-of-00002.gguf " in cli("replay", str(tmp_path / "split.json"), *pair)[2]


def test_the_record_is_never_written_over_another_file(cli):
    assert "is one of the input files" in cli("generate", *ASK, "--record", "picture.png")[2]
    assert "is the other file" in cli("trace", *ASK, "-o", "x.json", "--record", "x.json")[2]


def test_an_answer_among_others_is_recorded_alone(made):
    """Others share their steps, one of them recorded too; the record is that of the answer by itself."""
    model = load_sharing(made / "text.gguf", made / "mmproj.gguf")
    prompts = ["the one", "two is", "the one", "red"]

    def asked(prompt, keep=None):
        request, sampling = model.raw_request(prompt), Sampling(logit_bias={2: -100.0})
        stream = model.answer(request, sampling, max_tokens=9)
        if keep is None:
            return stream
        recording = Recording(model, RecordedRequest(prompt=prompt), sampling, 9, [])
        return recording.of(stream, lambda reply: keep.append(recording.record({}, request, reply)))

    kept = []
    deque(together([asked(prompt, kept if i < 2 else None) for i, prompt in enumerate(prompts)]), maxlen=0)
    assert max(model.ops.shared) == 2 and len(kept) == 2
    alone = []
    asked(prompts[0], alone).finish()
    assert compare(alone[0], kept[0]).same and alone[0].passes == kept[0].passes
    assert compare(kept[1], repeat(kept[1], model)).same and kept[1].passes != kept[0].passes
    assert asked(prompts[0]).finish().token_ids == tuple(kept[0].answer.token_ids)
