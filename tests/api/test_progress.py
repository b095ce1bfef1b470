"""Tests `return_progress`: what a client is told before the answer begins, and that it changes nothing."""

import threading

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("openai", reason="OpenAI's package is not installed")

import openai

import llava_ref
from llava_ref.api import respond
from llava_ref.generation.sampling import Sampling
from llava_ref.tracing.progress import Blocks, PictureProgress, Progress, PromptProgress
from llava_ref.tracing.trace import Probe

from ..support.waiting import PATIENCE
from .running import data_uri, load, picture, serving

PARTS = [{"type": "image_url", "image_url": {"url": data_uri(picture(name))}} for name in ("count.png", "digit.png")]
ASKED = [{"role": "user", "content": [*PARTS, {"type": "text", "text": "Count the stars. " * 20}]}]
ASK = {"model": "m", "messages": ASKED, "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
TELL = {"extra_body": {"return_progress": True}}


class Gate(Probe):
    """Holds the pass in front of some arrays until it may go on."""

    complete = False

    def __init__(self, *names):
        super().__init__(names)
        self.opened = threading.Event()

    def see(self, x, at):
        assert self.opened.wait(PATIENCE)
        return x


@pytest.fixture
def gated(monkeypatch):
    """A server, its gate, and clients with strict validation."""
    monkeypatch.setattr(respond, "PROGRESS_SECONDS", 0.01)
    with serving() as server:
        model, gates = server.models.current.model, []

        def hold(*names):
            gates.append(Gate(*names))
            model.probes.add(gates[-1])
            return gates[-1]

        client = openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="any", _strict_response_validation=True, max_retries=0
        )
        with client:
            yield client, hold
        for gate in gates:
            gate.opened.set()


def told(stream, wanted):
    """Read a stream up to the first state that `wanted` says; return it."""
    for chunk in stream:
        state = getattr(chunk, "prompt_progress", None)
        if state is not None and wanted(state):
            assert chunk.choices[0].delta.content is None and chunk.choices[0].finish_reason is None
            return state
    raise AssertionError("it never came")


def rest(stream):
    """Return the text of the rest of a stream, and its usage."""
    *chunks, last = stream
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks), last.usage


def test_what_a_client_is_told(gated):
    client, hold = gated
    picture_gate, prompt_gate = hold("vision.blk.2.layer_out"), hold("blk.3.out")
    first = client.chat.completions.create(**ASK, **TELL)
    state = told(first, lambda state: state.get("block") == 2)
    here = {"stage": "picture", "picture": 1, "pictures": 2, "block": 2, "blocks": 4, "processed": 0, "cache": 0}
    assert state.items() >= here.items() and set(state) == {*here, "total", "time_ms"}
    second, third = (client.chat.completions.create(**ASK, **TELL) for _ in range(2))
    assert told(second, lambda state: state["stage"] == "queue")["ahead"] == 1
    assert told(third, lambda state: state["stage"] == "queue")["ahead"] == 2
    picture_gate.opened.set()
    state = told(first, lambda state: state.get("layer") == 3)
    assert (state["stage"], state["layers"], state["cache"]) == ("prompt", 4, 0)
    assert 0 < state["processed"] < state["total"]
    prompt_gate.opened.set()
    texts = [rest(stream) for stream in (first, second, third)]
    assert texts[0][0] == texts[1][0] == texts[2][0] != ""
    assert [usage.prompt_tokens for _, usage in texts] == [state["total"]] * 3


def test_it_changes_no_answer_and_no_reuse(gated):
    client, _ = gated
    found = []
    for more in ({}, TELL):
        found += [rest(client.chat.completions.create(**ASK, **more)) for _ in range(2)]
    assert len({text for text, _ in found}) == 1
    cached = [usage.prompt_tokens_details.cached_tokens for _, usage in found]
    assert cached[0] == 0 and cached[1] == cached[2] == cached[3] > 128


def test_the_stream_helper_takes_it(gated):
    client, hold = gated
    gate = hold("vision.blk.1.layer_out")
    asked = {name: value for name, value in ASK.items() if name != "stream"}
    with client.chat.completions.stream(**asked, **TELL) as stream:
        for event in stream:
            if event.type == "chunk" and getattr(event.chunk, "prompt_progress", {}).get("block") == 1:
                gate.opened.set()
        message = stream.get_final_completion().choices[0].message
    assert gate.opened.is_set() and message.role == "assistant" and message.content


def test_only_where_it_is_asked_for_and_in_a_stream(server):
    lines = server.chat(ASKED[0]["content"], stream=True, max_tokens=2).text
    assert "prompt_progress" not in lines
    refused = server.chat("Hi", return_progress=True)
    assert server.error(refused) == (400, "return_progress", "invalid_value")


def test_every_block_is_reported_and_nothing_is_watched():
    model, seen = load(*llava_ref.embedded(), None), []
    blocks = Blocks.of(model.stages())
    assert len(blocks.tower) == 4 and list(blocks.layers.values()) == [1, 2, 3, 4]
    request = model.request(ASKED)
    plain = model.answer(request, Sampling(), max_tokens=4).finish()
    with model.probes.attached(Progress(blocks, seen.append)):
        assert not model.probes.complete
        watched = model.answer(request, Sampling(), max_tokens=4).finish()
    assert watched.token_ids == plain.token_ids
    pictures = [(at.picture, at.done, at.total) for at in seen if isinstance(at, PictureProgress)]
    assert pictures == [(n, i, 4) for n in (0, 1) for i in range(1, 5)]
    prompt = [at for at in seen if isinstance(at, PromptProgress)]
    positions = [at.position for at in prompt]
    assert positions == sorted(positions) and len(request.token_ids) in positions
