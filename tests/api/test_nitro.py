"""Tests Nitro's routes: another pair replaces the first, and the prompts have their documented meaning."""

import errno
import json
import os
import threading

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from httpx2 import Client

import llava_ref
from llava_ref.api import nitro
from llava_ref.chat.rendering import render
from llava_ref.memory import collect

from ..support.tiny_pair import VICUNA, Tiny, write_pair
from ..support.waiting import PATIENCE
from .running import Process, data_uri, picture, serving
from .test_stress import holding, send_request

LOAD = "/inferences/llamacpp/loadmodel"


@pytest.fixture
def pair(tmp_path):
    return write_pair(tmp_path, Tiny(template=VICUNA))


@pytest.fixture
def nitro_server(tmp_path, pair):
    with serving(folders=[tmp_path]) as server:
        yield server


def load(server, pair, **more):
    return server.post(LOAD, {"llama_model_path": str(pair[0]), "mmproj": str(pair[1])} | more)


def status(server, method="GET"):
    return server.client.request(method, "/inferences/llamacpp/modelstatus").json()


def test_load_status_unload(nitro_server, pair):
    loaded = load(nitro_server, pair)
    assert (loaded.status_code, loaded.json()["message"]) == (200, "Model loaded successfully")
    assert nitro_server.client.get("/v1/models").json()["data"][0]["id"] == "text"
    assert nitro_server.chat("the", max_tokens=1).json()["model"] == "any"
    again = load(nitro_server, pair)
    assert nitro_server.error(again) == (409, None, "model_already_loaded")
    assert again.headers["x-should-retry"] == "false"
    for method in ("GET", "POST"):
        answer = status(nitro_server, method)
        assert answer["model_loaded"] and json.loads(answer["model_data"])["n_ctx"] == 128
    unloaded = nitro_server.client.post("/inferences/LLAMACPP/unloadModel")
    assert unloaded.json() == {"message": "Model unloaded successfully"}
    assert status(nitro_server) == {"model_loaded": False}
    assert nitro_server.error(nitro_server.chat("Hi")) == (400, None, "model_not_loaded")
    assert nitro_server.error(nitro_server.client.get("/inferences/llamacpp/unloadmodel"))[0] == 409
    assert nitro_server.client.get("/health").json() == {"status": "ok", "model_loaded": False}
    assert nitro_server.client.get("/v1/models").json()["data"] == []
    assert load(nitro_server, pair, ctx_len=64).status_code == 200
    assert json.loads(status(nitro_server)["model_data"])["n_ctx"] == 64


def test_the_embedded_pair_can_be_loaded_again(nitro_server):
    text, mmproj = llava_ref.embedded()
    assert load(nitro_server, (text, mmproj)).status_code == 409
    nitro_server.client.get("/inferences/llamacpp/unloadmodel")
    assert load(nitro_server, (text, mmproj), ctx_len=100_000).status_code == 200, "clamped to the model's context"
    see = [
        {"type": "image_url", "image_url": {"url": data_uri(picture("count.png"))}},
        {"type": "text", "text": "Count the stars."},
    ]
    assert nitro_server.chat(see).json()["choices"][0]["message"]["content"] == "3"


def test_the_old_model_answers_while_the_new_one_loads(nitro_server, pair, monkeypatch):
    ready, reached = threading.Event(), threading.Event()
    slow = nitro_server.models._load

    def waits(*arguments):
        reached.set()
        assert ready.wait(PATIENCE)
        return slow(*arguments)

    monkeypatch.setattr(nitro_server.models, "_load", waits)
    answers = []
    loading = threading.Thread(target=lambda: answers.append(load(nitro_server, pair)))
    loading.start()
    assert reached.wait(PATIENCE)
    old = nitro_server.models.current.name
    assert nitro_server.chat("Hi", max_tokens=1).status_code == 200
    second = nitro_server.post(LOAD, {"llama_model_path": str(pair[0])})
    assert nitro_server.error(second) == (503, None, "model_loading") and second.headers["retry-after"]
    assert nitro_server.models.current.name == old
    ready.set()
    loading.join(PATIENCE)
    assert answers[0].status_code == 200 and nitro_server.models.current.name == "text"


def test_a_request_keeps_the_model_it_was_prepared_for(nitro_server, pair):
    with holding(nitro_server) as hold:
        connection = send_request(nitro_server, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})
        assert hold.reached.wait(PATIENCE)
        fingerprint = nitro_server.models.current.fingerprint
        assert load(nitro_server, pair).status_code == 200
        hold.go.set()
        assert json.loads(connection.getresponse().read())["system_fingerprint"] == fingerprint
        connection.close()
    assert nitro_server.chat("the", max_tokens=1).json()["system_fingerprint"] != fingerprint


def test_a_failed_load_leaves_the_old_model(nitro_server, pair, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 50)
    (tmp_path / "other").mkdir()
    other = write_pair(tmp_path / "other", Tiny(projected=48))
    for text, mmproj, param in [
        (broken, pair[1], "llama_model_path"),
        (tmp_path / "absent.gguf", pair[1], "llama_model_path"),
        (tmp_path, pair[1], "llama_model_path"),
        (pair[0], broken, "mmproj"),
        (pair[0], other[1], "mmproj"),
        (pair[1], pair[0], "llama_model_path"),
    ]:
        answer = load(nitro_server, (text, mmproj))
        assert nitro_server.error(answer) == (400, param, "invalid_model"), answer.text
        assert str(tmp_path) not in answer.text
    assert nitro_server.chat("Hi", max_tokens=1).status_code == 200


@pytest.mark.parametrize(
    "fault, status, code, words",
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 503, "load_failed", "No space left on device"),
        (MemoryError(), 503, "load_failed", "not enough memory"),
        (RuntimeError("a fault of ours"), 500, "internal_error", "internal"),
    ],
)
def test_an_exception_while_loading_leaves_the_old_model(nitro_server, pair, monkeypatch, fault, status, code, words):
    def breaks(*_):
        raise fault

    with monkeypatch.context() as patched:
        patched.setattr(nitro_server.models, "_load", breaks)
        answer = load(nitro_server, pair)
        assert nitro_server.error(answer) == (status, None, code)
        assert words in answer.text and "a fault of ours" not in answer.text
    assert nitro_server.chat("Hi", max_tokens=1).status_code == 200
    assert load(nitro_server, pair).status_code == 200, "the next load is possible"


def test_loading_and_answering_with_a_full_disk(tmp_path, pair):
    """A truncated copy is refused and the old model stays; loading and answering write no files."""
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(pair[0].read_bytes()[:-4096])
    asked = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    with Process("--allow-model-dir", str(tmp_path), no_files=True) as server, Client(base_url=server.url) as http:
        refused = http.post(LOAD, json={"llama_model_path": str(cut)})
        assert refused.status_code == 400 and "but the file ends at" in refused.text
        old = http.post("/v1/chat/completions", json=asked)
        assert http.post(LOAD, json={"llama_model_path": str(pair[0])}).status_code == 200
        new = http.post("/v1/chat/completions", json=asked)
    assert old.status_code == new.status_code == 200
    assert old.json()["system_fingerprint"] != new.json()["system_fingerprint"]


def test_files_outside_the_allowed_folders_are_not_opened(nitro_server, tmp_path, pair):
    link = tmp_path / "link.gguf"
    link.symlink_to("/etc/passwd")
    for path in ("/etc/passwd", "/etc/absent", f"{tmp_path}/../x.gguf", str(link), "relative.gguf"):
        answer = nitro_server.post(LOAD, {"llama_model_path": path})
        assert nitro_server.error(answer) == (403, "llama_model_path", "path_not_allowed")
    answer = nitro_server.post(LOAD, {"llama_model_path": str(pair[0]), "mmproj": "/etc/passwd"})
    assert nitro_server.error(answer) == (403, "mmproj", "path_not_allowed")
    assert nitro_server.error(nitro_server.post(LOAD, {"llama_model_path": "a\0b"}))[0] == 400


def test_a_folder_allows_no_other_path_with_the_same_prefix(tmp_path):
    """`models` does not allow files in `models-private`, nor a file named `models.gguf`."""
    for name in ("models", "models-private", "models/inner"):
        (tmp_path / name).mkdir()
    inside = write_pair(tmp_path / "models/inner", Tiny(template=VICUNA))
    private = write_pair(tmp_path / "models-private", Tiny(template=VICUNA))
    beside = tmp_path / "models.gguf"
    beside.write_bytes(private[0].read_bytes())
    (tmp_path / "link").symlink_to(tmp_path / "models")
    for folder in (tmp_path / "models", tmp_path / "models-private/../models/", tmp_path / "link"):
        with serving(folders=[folder]) as server:
            detour = f"{tmp_path}/models/../models-private/{private[0].name}"
            for path in (private[0], beside, detour, f"{tmp_path}/models-private"):
                answer = server.post(LOAD, {"llama_model_path": str(path)})
                assert server.error(answer) == (403, "llama_model_path", "path_not_allowed"), path
            answer = server.post(LOAD, {"llama_model_path": str(inside[0]), "mmproj": str(private[1])})
            assert server.error(answer) == (403, "mmproj", "path_not_allowed")
            assert load(server, inside).status_code == 200
            assert load(server, (f"{tmp_path}/link/inner/{inside[0].name}", inside[1])).status_code == 409, "the same"


@pytest.mark.parametrize(
    "body, param",
    [
        ({}, "llama_model_path"),
        ({"llama_model_path": "x", "ctx_len": 0}, "ctx_len"),
        ({"llama_model_path": "x", "grammar_file": "y"}, "grammar_file"),
        ({"llama_model_path": "x", "model_type": "embedding"}, "model_type"),
    ],
)
def test_invalid_load_requests(server, body, param):
    assert server.error(server.post(LOAD, body))[:2] == (400, param)


def rendered(asked, messages):
    return render(messages, nitro.template(nitro.LoadRequest(llama_model_path="x", **asked)).source)


def test_the_prompts_have_their_documented_meaning():
    asked = {"system_prompt": "", "user_prompt": "\n### Instruction:\n", "ai_prompt": "\n### Response:\n"}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    assert rendered(asked, messages) == (
        "Be brief.\n### Instruction:\n<image>What is it?\n### Response:\nA cat."
        "\n### Instruction:\nSure?\n### Response:\n"
    )
    odd = {"pre_prompt": 'It\'s {{ 1 + 1 }} {% if %}\\ "é"\n', "user_prompt": "U: "}
    assert rendered(odd, messages[3:]) == odd["pre_prompt"] + "U: Sure?ASSISTANT: ", "Nitro's defaults for the rest"
    assert nitro.template(nitro.LoadRequest(llama_model_path="x")) is None, "the file's own template"


def test_an_answer_stops_before_the_user_prompt(nitro_server, pair):
    load(nitro_server, pair, user_prompt="\n### Instruction:\n", ai_prompt="\n### Response:\n", system_prompt="")
    assert nitro_server.models.current.stops == ("### Instruction:",)
    see = [{"type": "image_url", "image_url": {"url": data_uri(picture("count.png"))}}, {"type": "text", "text": "the"}]
    usage = nitro_server.chat(see, max_tokens=3).json()["usage"]
    assert usage["prompt_tokens_details"]["image_tokens"] == 16


def test_memory_of_replaced_models_is_freed(tmp_path, nitro_server):
    """Load two models of 60 MB in turn, several times; the process must not grow."""
    pairs = []
    for name in "ab":
        (tmp_path / name).mkdir()
        pairs.append(write_pair(tmp_path / name, Tiny(width=512, mlp_width=2048, n_layer=3, template=VICUNA)))

    def resident():
        collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    sizes = []
    for i in range(6):
        assert load(nitro_server, pairs[i % 2]).status_code == 200
        assert nitro_server.chat("the", max_tokens=1).status_code == 200
        sizes.append(resident())
    assert max(sizes[2:]) < sizes[1] + 30e6, sizes
    nitro_server.client.get("/inferences/llamacpp/unloadmodel")
    assert resident() < sizes[1] - 20e6, (sizes, resident())
