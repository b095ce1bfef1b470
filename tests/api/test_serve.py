"""Tests the command `serve`: a wrong option is reported in one line before the server listens."""

import socket

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

import httpx2

from llava_ref.cli import main
from llava_ref.tools.serve import is_loopback

from ..support.tiny_pair import VICUNA, Tiny, write_pair
from .running import Process, serving


@pytest.mark.parametrize(
    "options, words",
    [
        (["--port", "70000"], "--port: 70000"),
        (["--host", "256.1.1.1"], "--port: 256.1.1.1:0"),
        (["--api-key", " "], "--api-key: empty"),
        (["--allow-model-dir", "/no/such/folder"], "--allow-model-dir: /no/such/folder: not a folder"),
        (["--max-images", "17"], "--max-images: 17: expected at most 16"),
        (["--max-body", "0"], "--max-body: 0"),
        (["--read-seconds", "nan"], "--read-seconds: nan"),
        (["--max-queue", "-1"], "--max-queue: -1"),
        (["--cors-origin", "localhost:5173"], "--cors-origin: localhost:5173: expected an origin"),
        (["--cors-origin", "http://a.example/page"], "--cors-origin: http://a.example/page: expected an origin"),
        (["--allow-host", "http://gpu-box"], "--allow-host: http://gpu-box: expected a host's name"),
        (["--allow-host", "gpu-box:3928"], "--allow-host: gpu-box:3928: expected a host's name"),
        (["-m", "/no/such/file.gguf"], "/no/such/file.gguf: "),
        (["--ctx-size", "1"], "n_context: 1"),
    ],
)
def test_wrong_options(options, words, capsys):
    assert main(["serve", *([] if "--port" in options else ["--port", "0"]), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {words}") and error.count("\n") == 1


def test_a_port_in_use(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--port", port]) == 2
    assert capsys.readouterr().err == f"error: --port: 127.0.0.1:{port}: Address already in use\n"


def test_without_the_server_extra(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "starlette", None)
    assert main(["serve", "--port", "0"]) == 2
    assert "the server extra is missing: pip install" in capsys.readouterr().err


def test_options_reach_the_server():
    with Process("--ctx-size", "64", "--max-queue", "0") as server:
        model = httpx2.get(f"{server.url}/v1/models").json()["data"][0]
        assert model["meta"]["n_ctx"] == 64


@pytest.mark.parametrize("key, warned", [([], True), (["--api-key", "k"], False)])
def test_a_public_server_without_a_key_prints_a_warning(key, warned):
    with Process("--host", "0.0.0.0", *key) as server:
        pass
    assert ("no --api-key" in "".join(server.log)) == warned


@pytest.mark.parametrize(
    "address, here",
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("::ffff:192.168.1.2", False),
        ("fe80::1%eth0", False),
    ],
)
def test_loopback_addresses(address, here):
    assert is_loopback(address) == here


@pytest.mark.parametrize(
    "options, names",
    [
        ([], {"gpu-box.lan": 403, "other.lan": 403, "localhost": 200}),
        (["--allow-host", "GPU-box.lan"], {"gpu-box.lan": 200, "other.lan": 403, "localhost": 200}),
        (["--host", "127.0.0.2"], {"gpu-box.lan": 403, "127.0.0.2": 200}),
        (["--api-key", "k"], {"gpu-box.lan": 200, "other.lan": 200}),
        (["--host", "0.0.0.0"], {"gpu-box.lan": 200, "other.lan": 200}),
        (["--host", "0.0.0.0", "--allow-host", "gpu-box.lan"], {"gpu-box.lan": 200, "other.lan": 403, "10.0.0.1": 200}),
    ],
    ids=" ".join,
)
def test_the_host_names_that_serve_accepts(options, names):
    with Process(*options) as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        for name, status in names.items():
            answer = httpx2.get(f"{url}/health", headers={"host": name})
            assert answer.status_code == status, name
            assert status == 200 or answer.json()["error"]["code"] == "host_not_allowed"
    assert ("no --api-key" in "".join(server.log)) == ("0.0.0.0" in options)


def test_model_files_may_be_deleted_while_they_are_served(tmp_path):
    pair = write_pair(tmp_path, Tiny(template=VICUNA))
    with serving(pair=pair) as server:
        before = server.chat("the", max_tokens=3).json()
        for path in pair:
            path.unlink()
        after = server.chat("the", max_tokens=3).json()
        assert after["choices"] == before["choices"] and after["system_fingerprint"] == before["system_fingerprint"]
