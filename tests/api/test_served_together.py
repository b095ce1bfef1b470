"""Tests requests that are answered at once: every answer is the one that the request gets by itself."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from llava_ref.api import protocol, worker
from llava_ref.api.limits import Limits

from ..support.sharing import load_sharing
from ..support.waiting import PATIENCE
from .running import data_uri, events, message, picture, serving
from .test_crowding import UNREAD, many
from .test_stress import LONG, idle, metric, send_request

CHAT = "/v1/chat/completions"
MOST = 4


def load(text, mmproj, n_context):
    return load_sharing(text, mmproj, MOST, n_context=n_context)


@pytest.fixture(scope="module")
def sharing():
    with serving(load=load) as server:
        yield server


def see(name, question):
    image = {"type": "image_url", "image_url": {"url": data_uri(picture(name))}}
    return [{"role": "user", "content": [image, {"type": "text", "text": question}]}]


NO_END = {"logit_bias": {"2": -100}}
SCORED = {"logprobs": True, "top_logprobs": 3}
REQUESTS = [
    (CHAT, {"messages": see("count.png", "Count the stars."), **SCORED}),
    (CHAT, {"messages": see("colour.png", "Describe the picture."), "max_tokens": 30, **SCORED, **NO_END}),
    (CHAT, {"messages": see("count.png", "Describe it."), "n": 3, "max_tokens": 12, "temperature": 1.2, "seed": 5}),
    (CHAT, {"messages": [{"role": "user", "content": "Hi " * 300}], "max_tokens": 9, "prompt_logprobs": 1, **NO_END}),
    ("/v1/completions", {"prompt": ["USER: Hi", "two " * 90], "max_tokens": 8, "echo": True, "logprobs": 2, **NO_END}),
    ("/v1/completions", {"prompt": "one", "n": 2, "max_tokens": 25, "temperature": 0.8, "seed": 2, **NO_END}),
    (CHAT, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 40, "stop": ["e"], **NO_END}),
    (
        "/v1/look",
        {"messages": [*see("count.png", "Count the stars."), {"role": "assistant", "content": "There are 3 stars."}]},
    ),
]  # fmt: skip


def ask(server, request, stream=False):
    """Return everything of an answer that a request determines."""
    path, body = request
    if path == "/v1/look":
        return server.post(path, body).json()
    if not stream or "prompt_logprobs" in body:
        answer = server.post(path, body).json()
        return answer["choices"], answer["usage"]["completion_tokens"], answer.get("prompt_logprobs")
    with server.client.stream("POST", path, json=body | {"stream": True}) as answer:
        return [chunk if chunk == "[DONE]" else chunk["choices"] for chunk in events(answer)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("clients", [3, 8])
def test_every_answer_is_the_one_that_its_request_gets_alone(sharing, stream, clients):
    alone = [ask(sharing, request, stream) for request in REQUESTS]
    model = sharing.models.current.model
    model.ops.shared.clear()
    jobs = [(i * 5 + i // 8) % len(REQUESTS) for i in range(16)]
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda i: ask(sharing, REQUESTS[i], stream), jobs))
    for i, answer in zip(jobs, found, strict=True):
        assert answer == alone[i], REQUESTS[i]
    assert max(model.ops.shared) == min(clients, MOST), model.ops.shared
    assert len(model.reuse._kept) <= MOST and model.reuse._n_used == 0


def begun(server, body):
    """Send a streamed request, and return it once its first words have come."""
    connection = send_request(server, body | {"stream": True})
    answer = connection.getresponse()
    assert answer.status == 200
    while b'"content":"' not in (line := answer.readline()) or b'"role"' in line:
        pass
    return connection, answer


def test_several_run_at_once_and_the_metrics_say_so(sharing):
    with ExitStack() as stack:
        for _ in range(MOST):
            connection, answer = begun(sharing, LONG)
            stack.callback(connection.close)
            stack.callback(answer.close)
        assert sharing.worker.running == metric(sharing, "llava_ref_requests_running") == MOST
    sharing.until(lambda: idle(sharing))
    assert metric(sharing, "llava_ref_requests_running") == 0


def test_a_client_that_goes_ends_its_own_answer_only(sharing):
    alone = ask(sharing, REQUESTS[1])
    with ThreadPoolExecutor(2) as pool:
        connection, answer = begun(sharing, LONG)
        kept = [pool.submit(ask, sharing, REQUESTS[1]) for _ in range(2)]
        answer.close()
        connection.close()
        assert [future.result() for future in kept] == [alone] * 2
    sharing.until(lambda: idle(sharing))


def test_as_many_wait_as_may_besides_those_that_run():
    with serving(load=load, limits=Limits(max_queue=1)) as server, ExitStack() as stack:
        for _ in range(MOST):
            for opened in begun(server, LONG):
                stack.callback(opened.close)
        stack.callback(send_request(server, LONG).close)
        server.until(lambda: server.worker.waiting == 1)
        assert server.error(server.chat("Hi")) == (429, None, "server_busy")


def test_a_client_that_does_not_read_is_set_aside_and_gets_the_same(sharing, monkeypatch):
    monkeypatch.setattr(worker, "MAX_BEHIND", 8)
    monkeypatch.setattr(protocol, "WRITE_BUFFER", 4096)
    monkeypatch.setattr(protocol, "SEND_BUFFER", 4096)
    body = UNREAD | {"n": 1, "max_tokens": 60, "temperature": 2.0, "seed": 3}
    whole = ask(sharing, (CHAT, body), stream=True)
    alone = ask(sharing, REQUESTS[5])
    with many(sharing, 1, message("POST", CHAT, json.dumps(body).encode(), "Connection: close")) as (sock,):
        sharing.until(lambda: sharing.worker._paused)
        with ThreadPoolExecutor(MOST) as pool:
            assert list(pool.map(lambda _: ask(sharing, REQUESTS[5]), range(8))) == [alone] * 8
        file = sock.makefile("rb")
        lines = [line.decode().strip()[6:] for line in file if line.startswith(b"data: ")]
        file.close()
    assert [line if line == "[DONE]" else json.loads(line)["choices"] for line in lines] == whole


def test_shutting_down_lets_all_that_run_finish():
    with serving(load=load) as server:
        running = [begun(server, LONG | {"max_tokens": 30}) for _ in range(3)]
        server.worker.drain(20)
        for connection, answer in running:
            rest = answer.read()
            assert rest.endswith(b"data: [DONE]\n\n") and b'"finish_reason":"length"' in rest
            connection.close()
        server.worker.join(PATIENCE)
        assert not server.worker.alive


def test_another_model_is_loaded_while_requests_run(tmp_path_factory):
    """Those that run end on the model that they began with; the next is answered when they have."""
    import llava_ref

    from ..support.tiny_pair import VICUNA, Tiny, write_pair

    folder = tmp_path_factory.mktemp("other")
    text, mmproj = write_pair(folder, Tiny(template=VICUNA))
    with serving(load=load, folders=(folder,)) as server, ThreadPoolExecutor(3) as pool:
        alone = ask(server, REQUESTS[1])
        first = [pool.submit(ask, server, REQUESTS[1]) for _ in range(3)]
        server.until(lambda: server.worker.running == 3)
        paths = {"llama_model_path": str(text), "mmproj": str(mmproj)}
        assert server.post("/inferences/llamacpp/loadmodel", paths).status_code == 200
        other = server.chat("Hi", max_tokens=2).json()
        assert other["model"] and server.models.current.name == text.stem
        assert [future.result() for future in first] == [alone] * 3
    assert llava_ref.embedded()[0].exists()
