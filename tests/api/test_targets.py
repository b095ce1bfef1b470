"""Tests the forms of a request target that reach one route, and the errors for unknown paths and methods."""

import json

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from .running import connect, message, parse_response, read_all, serving

HI = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}).encode()
PROMPT = json.dumps({"prompt": "Hi", "max_tokens": 1}).encode()


def ask(server, method, target, body=b"", *headers):
    with connect(server) as sock:
        sock.sendall(message(method, target, body, "Connection: close", *headers))
        return parse_response(read_all(sock))


@pytest.mark.parametrize(
    "target",
    [
        "/v1/chat/completions",
        "/v1/chat/completions/",
        "/v1/chat/completions//",
        "/v1//chat/completions",
        "//v1/chat/completions",
        "///v1///chat///completions///",
        "/v1/chat/completions?api-version=1",
        "/v1/chat/completions/?a=/b//c",
        "http://localhost/v1/chat/completions",
        "http://localhost:3928//v1/chat/completions/",
        "HTTP://127.0.0.1/v1/chat/completions?x=http://y/",
        "https://[::1]:443/v1/chat/completions",
        "/v1/chat%2Fcompletions",
        "//chat/completions/",
        "/INFERENCES/llamacpp//Chat_Completion/",
    ],
)
def test_forms_of_a_target(server, target):
    assert ask(server, "POST", target, HI)[0] == 200


@pytest.mark.parametrize(
    "target",
    [
        "/V1/chat/completions",
        "/v1/chat/completions/x",
        "v1/chat/completions",
        "ftp://localhost/v1/chat/completions",
        "http:///v1/chat/completions",
        "http://u:p@localhost/v1/chat/completions",
        "http://localhost",
        "*",
    ],
)
def test_targets_that_are_not_a_route(server, target):
    status, body = ask(server, "POST", target, HI)
    assert status in (404, 405) and body["error"]["code"] in ("not_found", "method_not_allowed")


def test_routes_without_v1(server):
    listed = ask(server, "GET", "/models")[1]
    assert listed == ask(server, "GET", "/v1/models/")[1] and listed["data"]
    name = listed["data"][0]["id"]
    assert ask(server, "GET", f"/models/{name}")[1] == ask(server, "GET", f"/v1/models/{name}/")[1] == listed["data"][0]
    texts = [ask(server, "POST", path, PROMPT)[1]["choices"] for path in ("/completions", "/v1/completions")]
    assert texts[0] == texts[1]


def test_every_form_of_a_target_needs_the_key():
    """No form of a path bypasses the key."""
    with serving(api_key="sesame") as server:
        for target in (
            "//v1/models",
            "/v1/models/",
            "http://localhost/v1/models",
            "//health/../v1/models",
            "//metrics",
        ):
            assert ask(server, "GET", target)[0] == 401, target
        for target in ("//health", "/health/", "http://localhost/health", "http://localhost", "//"):
            assert ask(server, "GET", target)[0] == 200, target


@pytest.mark.parametrize("target", ["/v1/embeddings", "/v1/messages", "/api/chat", "/v2/models", "/" + "x" * 5000])
def test_an_unknown_route_names_the_existing_ones(server, target):
    status, body = ask(server, "POST", target, b"{}")
    words = body["error"]["message"]
    assert status == 404 and body["error"]["code"] == "not_found" and len(words) < 1000
    assert repr(target)[:90] in words
    for path in (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/tokenize",
        "/inferences/llamacpp/loadmodel",
    ):
        assert f" {path}," in words


def test_a_wrong_method_names_the_allowed_ones(server):
    status, body = ask(server, "DELETE", "/v1//models/")
    assert (
        status == 405 and "/v1/models does not accept 'DELETE', expected one of GET, HEAD" in body["error"]["message"]
    )
    assert "POST" in ask(server, "GET", "/v1/chat/completions")[1]["error"]["message"]


def test_metrics_and_log_contain_routes_but_no_client_text(server, caplog):
    """A client that invents paths does not make the metrics grow, and writes nothing into metrics or log."""
    strange = [
        "/v1/models/secret-one",
        "/models/se%22cret%0a2",
        "/secret/three",
        "//v1//models/secret4/",
        "/v1/%7Bname%7D/s",
    ]
    with caplog.at_level("INFO", "llava_ref.server"):
        for target in strange:
            assert ask(server, "GET", target)[0] == 404
        server.until(lambda: sum("404" in line for line in caplog.messages) == len(strange))
        page = server.client.get("/metrics").text
    assert "secret" not in page and "secret" not in caplog.text and "cret" not in page
    assert 'llava_ref_requests_total{route="/v1/models/{name}",status="404"}' in page
    assert 'llava_ref_requests_total{route="/models/{name}",status="404"}' in page
    assert 'llava_ref_requests_total{route="unknown",status="404"}' in page
    assert [line.split()[2] for line in caplog.messages if "404" in line] == [
        "/v1/models/{name}",
        "/models/{name}",
        "unknown",
        "/v1/models/{name}",
        "unknown",
    ]
