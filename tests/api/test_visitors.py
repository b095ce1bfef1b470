"""Tests that a web page cannot use its visitor's server: `Host`, `Origin`, `Sec-Fetch-Site`, preflights."""

import json

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from llava_ref.api.visitors import AccessRules, as_origin, is_host, is_origin

from .running import connect, message, parse_response, read_all, serving

UNLOAD = "/inferences/llamacpp/unloadmodel"
CHAT = "/v1/chat/completions"
HI = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}).encode()
EVIL = "http://evil.example"
ONLY_READ = {  # by GET and HEAD; every other route and method changes state or runs the model
    "/v1/models",
    "/models",
    "/v1/models/{name}",
    "/models/{name}",
    "/health",
    "/healthz",
    "/metrics",
    "/openapi.json",
    "/page.json",
    "/docs/{name}",
    "/tokenizer_info",
    "/inferences/llamacpp/modelstatus",
}


@pytest.fixture(scope="module")
def alone():
    with serving() as server:
        yield server


def endpoints(server):
    """Return every route with every method that it accepts."""
    return [(method, route.path) for route in server.api.routes() for method in sorted(route.methods)]


def is_file(path):
    return path == "/" or path.endswith((".js", ".css"))


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": EVIL},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"referer": f"{EVIL}/page.html"},
        {"origin": EVIL, "sec-fetch-site": "cross-site", "content-type": "text/plain"},
    ],
    ids=lambda headers: " ".join(headers.values()),
)
def test_a_foreign_page_can_change_nothing(alone, headers):
    for method, path in endpoints(alone):
        answer = alone.client.request(method, path.replace("{name}", "x"), headers=headers)
        reads = method in ("GET", "HEAD") and (path in ONLY_READ or is_file(path))
        assert (answer.status_code == 403) == (not reads), (method, path, answer.status_code)
        assert "access-control-allow-origin" not in answer.headers, "the page cannot read the answer either"
        if method != "HEAD" and not reads:
            assert alone.error(answer) == (403, None, "origin_not_allowed")
    assert alone.models.current_or_none is not None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:3928", "localhost.evil.example", "127.0.0.1.evil.example"]
)
def test_no_route_answers_to_a_foreign_host_name(alone, host):
    """An attacker's DNS server may point such a name at this machine."""
    for method, path in [*endpoints(alone), ("GET", "/nothing"), ("DELETE", "/"), ("OPTIONS", CHAT)]:
        headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
        answer = alone.client.request(method, path.replace("{name}", "x"), headers=headers)
        assert answer.status_code == 403, (method, path)
        if method != "HEAD":
            assert alone.error(answer)[2] == "host_not_allowed"
    assert alone.models.current_or_none is not None


@pytest.mark.parametrize(
    "host, answered",
    [
        ("localhost", True),
        ("LocalHost:1234", True),
        ("localhost.", True),
        ("app.localhost:80", True),
        ("127.0.0.1", True),
        ("127.0.0.1.", True),
        ("192.168.1.20:3928", True),
        ("[::1]", True),
        ("[::1]:3928", True),
        ("[FE80::1]:3928", True),
        ("GPU-box.lan", True),
        ("gpu-box.lan.:3928", True),
        ("notlocalhost", False),
        ("localhost.com", False),
        ("evil.localhost.example", False),
        ("1.2.3.4.5", False),
        ("2130706433", False),
        ("[::1", False),
        ("[::1].evil.example", False),
        ("::1", False),
        ("127.0.0.1@evil.example", False),
        ("evil.example#127.0.0.1", False),
        ("localhost/evil.example", False),
        ("localhost:80:80", False),
        ("localhost evil.example", False),
        ("", False),
    ],
)
def test_allowed_host_names(host, answered):
    with serving(names=["gpu-box.lan"]) as server, connect(server) as sock:
        sock.sendall(message("GET", "/health", b"", f"Host: {host}", "Connection: close"))
        assert parse_response(read_all(sock))[0] == (200 if answered else 403)


def test_a_missing_or_repeated_host(alone):
    for head in ("GET /health HTTP/1.1\r\n", "GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n"):
        with connect(alone) as sock:
            sock.sendall(f"{head}Connection: close\r\n\r\n".encode())
            assert parse_response(read_all(sock))[0] == 400
    with connect(alone) as sock:
        sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert parse_response(read_all(sock))[0] == 200, "no browser uses HTTP/1.0, but a health check may"


@pytest.mark.parametrize(
    "target, host, status",
    [
        ("http://127.0.0.1/health", "localhost", 200),
        ("http://evil.example/health", "localhost", 403),
        ("http://localhost/health", "evil.example", 403),
        ("HTTPS://EVIL.example:443/health", "127.0.0.1", 403),
        (f"http://evil.example{UNLOAD}", "127.0.0.1", 403),
    ],
)
def test_the_host_of_a_target_in_absolute_form(alone, target, host, status):
    with connect(alone) as sock:
        sock.sendall(message("GET", target, b"", f"Host: {host}", "Connection: close"))
        assert parse_response(read_all(sock))[0] == status
    assert alone.models.current_or_none is not None


def test_without_host_rules_every_name_is_answered():
    """On a network, or with a key, any host name is accepted; foreign pages are refused all the same."""
    with serving(names=None) as server:
        assert server.client.get("/health", headers={"host": "gpu-box.lan"}).status_code == 200
        foreign = {"host": "gpu-box.lan", "origin": EVIL}
        assert server.client.post(UNLOAD, headers=foreign).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://127.0.0.1:{port}", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"},
        {"host": "[::1]:{port}", "origin": "http://[::1]:{port}"},
        {"host": "localhost", "origin": "http://localhost"},
        {"host": "localhost:443", "origin": "https://localhost"},
        {"host": "LOCALHOST.:{port}", "origin": "http://localhost:{port}"},
        {"referer": "http://127.0.0.1:{port}/"},
    ],
    ids=str,
)
def test_the_servers_own_page_and_programs_are_answered(alone, headers):
    port = alone.url.rsplit(":", 1)[1]
    headers = {name: value.format(port=port) for name, value in headers.items()}
    answer = alone.client.post(CHAT, content=HI, headers={"content-type": "application/json", **headers})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:{port}"},
        {"origin": "http://127.0.0.1"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "http://127.0.0.1:{port}.evil.example"},
        {"origin": "http://127.0.0.1:{port}@evil.example"},
        {"origin": "http://127.0.0.1:{port}", "sec-fetch-site": "cross-site"},
        {"origin": "file://"},
        {"origin": "chrome-extension://abcdef"},
        {"origin": ""},
        {"origin": "http://[::1"},
        {"sec-fetch-site": "Cross-Site"},
        {"sec-fetch-site": "whatever"},
    ],
    ids=str,
)
def test_other_pages_on_this_machine_are_refused(alone, headers):
    port = alone.url.rsplit(":", 1)[1]
    headers = {name: value.format(port=port) for name, value in headers.items()}
    answer = alone.client.post(CHAT, content=HI, headers={"content-type": "application/json", **headers})
    assert alone.error(answer) == (403, None, "origin_not_allowed")


def test_curl_can_unload_the_model_but_an_image_tag_cannot():
    with serving() as server:
        image = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
        for path in (UNLOAD, UNLOAD.upper().replace("/INF", "/inf"), f"/{UNLOAD}/", f"http://localhost{UNLOAD}"):
            with connect(server) as sock:
                sock.sendall(message("GET", path, b"", "Connection: close", *(f"{k}: {v}" for k, v in image.items())))
                assert parse_response(read_all(sock))[0] == 403, path
        assert server.client.head(UNLOAD).status_code == 405, "HEAD must not change anything"
        assert server.models.current_or_none is not None
        assert server.client.get(UNLOAD).status_code == 200 and server.models.current_or_none is None


def test_pages_that_the_operator_allowed():
    page = {"origin": "https://pages.example", "sec-fetch-site": "cross-site", "content-type": "application/json"}
    with serving(origins=["https://Pages.example:443/"]) as server:
        answer = server.client.post(CHAT, content=HI, headers=page)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == page["origin"]
        assert answer.headers["vary"] == "Origin" and answer.headers["access-control-expose-headers"] == "x-request-id"
        for other in ("http://pages.example", "https://pages.example:8443", "https://x.pages.example", "null"):
            answer = server.client.post(CHAT, content=HI, headers=page | {"origin": other})
            assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
        assert server.client.get("/health").headers["vary"] == "Origin", "caches must distinguish origins"
    with serving(origins=["*"]) as server:
        answer = server.client.post(CHAT, content=HI, headers=page)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "*"


def preflight(server, origin, method="POST", **more):
    asks = {"origin": origin, "access-control-request-method": method, **more}
    return server.client.options(CHAT, headers=asks)


def test_preflights():
    private = {"access-control-request-private-network": "true"}
    with serving(origins=["https://good.example"], api_key="k") as server:
        allowed = preflight(server, "https://good.example", **{"access-control-request-headers": "authorization,x-a"})
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-headers"] == "authorization,x-a"
        assert allowed.headers["access-control-allow-methods"] == "GET, POST"
        assert allowed.headers["access-control-allow-origin"] == "https://good.example"
        assert "access-control-allow-private-network" not in allowed.headers
        near = preflight(server, "https://good.example", **private)
        assert near.status_code == 200 and near.headers["access-control-allow-private-network"] == "true"
        assert near.headers["x-request-id"].startswith("req_")
        for origin in ("https://bad.example", "null", "http://good.example"):
            refused = preflight(server, origin, **private)
            assert server.error(refused) == (403, None, "origin_not_allowed")
            assert not [name for name in refused.headers if name.startswith("access-control-")]
        assert server.error(preflight(server, "https://good.example", "DELETE")) == (405, None, "method_not_allowed")
        assert server.error(preflight(server, ""))[0] == 403
    with serving() as server:
        assert server.error(preflight(server, "https://good.example", **private))[0] == 403


def test_values_of_the_origin_and_host_options():
    assert all(
        map(is_origin, ["*", "null", "http://localhost:5173", "HTTPS://a.b/", "chrome-extension://abc", "app://x"])
    )
    assert not any(map(is_origin, ["", "localhost:5173", "a.b", "http://", "http://a/b", "http://u@a", "http://a b"]))
    assert all(map(is_host, ["gpu-box.lan", "x", "10.0.0.1", "[::1]"]))
    assert not any(map(is_host, ["", "http://x", "x:80", "x/y", "u@x", "*.x y"]))
    assert as_origin("HTTP://A.b:80/") == "http://a.b" and as_origin("https://a.b:80") == "https://a.b:80"
    assert AccessRules(["http://a.b:80"]).allows("http://a.b")
