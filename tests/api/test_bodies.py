"""Tests how the bytes of a request are read: content encodings, byte order marks, invalid text."""

import gzip
import json
import zlib
from functools import partial

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

from llava_ref.api.encoding import PIECE, content_decoder
from llava_ref.api.errors import ApiError
from llava_ref.api.limits import Limits
from llava_ref.api.openapi import CHAT_PATHS

from .running import serving

CHAT = "/v1/chat/completions"
zipped = partial(gzip.compress, mtime=0)  # the same bytes in every process that collects tests
HI = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}).encode()


def bare(data):
    squeeze = zlib.compressobj(wbits=-15)
    return squeeze.compress(data) + squeeze.flush()


def post(server, content, coding=None, path=CHAT):
    headers = {"content-type": "application/json"} | ({} if coding is None else {"content-encoding": coding})
    return server.client.post(path, content=content, headers=headers)


@pytest.mark.parametrize(
    "coding, content",
    [
        ("gzip", zipped(HI)),
        ("GZIP", zipped(HI)),
        ("x-gzip", zipped(HI)),
        ("gzip", zipped(HI[:20]) + zipped(HI[20:])),
        ("gzip", iter([zipped(HI)[:1], zipped(HI)[1:12], zipped(HI)[12:]])),
        ("deflate", zlib.compress(HI)),
        ("deflate", iter([zlib.compress(HI)[:1], zlib.compress(HI)[1:]])),
        ("deflate", bare(HI)),
        ("identity", HI),
        ("identity, gzip", zipped(HI)),
        ("", HI),
    ],
)
def test_supported_encodings_are_decoded(server, coding, content):
    assert post(server, content, coding).status_code == 200


@pytest.mark.parametrize(
    "coding, content, status",
    [
        ("br", HI, 415),
        ("zstd", HI, 415),
        ("compress", HI, 415),
        ("aws-chunked", HI, 415),
        ("gzip, gzip", zipped(zipped(HI)), 415),
        ("deflate, br", HI, 415),
        ("gzip", HI, 400),
        ("gzip", b"", 400),
        ("gzip", zlib.compress(HI), 400),
        ("gzip", zipped(HI)[:-1], 400),
        ("gzip", zipped(HI)[:-5] + b"12345", 400),
        ("gzip", zipped(HI) + b"more", 400),
        ("deflate", b"", 400),
        ("deflate", b"{", 400),
        ("deflate", HI, 400),
        ("deflate", zlib.compress(HI)[:-2], 400),
        ("deflate", zlib.compress(HI) + b"more", 400),
        ("deflate", zipped(HI), 400),
    ],
)
def test_bad_encodings_are_refused_by_name(server, coding, content, status):
    answer = post(server, content, coding)
    code = {400: "invalid_content_encoding", 415: "unsupported_content_encoding"}[status]
    assert server.error(answer) == (status, None, code)
    assert answer.json()["error"]["message"].startswith(f"content-encoding: {coding}: ")


def test_encoded_and_decoded_size_are_both_limited():
    with serving(limits=Limits(max_body=100_000)) as server:
        fits = HI + b" " * (100_000 - len(HI))
        assert post(server, zipped(fits), "gzip").status_code == 200
        for coding, squeezed in (("gzip", zipped), ("deflate", zlib.compress), ("deflate", bare)):
            assert server.error(post(server, squeezed(fits + b" "), coding)) == (413, None, "request_too_large")
        assert server.error(post(server, zipped(b" " * 10**8), "gzip"))[0] == 413
        stored = zipped(HI, 0) + zipped(b"", 0) * 5000  # large when encoded, small when decoded
        assert len(stored) > 100_000 and server.error(post(server, stored, "gzip"))[0] == 413
        assert server.error(post(server, iter([stored]), "gzip"))[0] == 413, "without a length too"
        server.until(lambda: server.api._body_bytes.taken == 0)


def test_decoded_data_comes_in_pieces():
    data = bytes(3 * PIECE + 5)
    for coding, squeezed in (("gzip", zipped(data)), ("deflate", zlib.compress(data)), ("deflate", bare(data))):
        undo = content_decoder([coding])
        pieces = list(undo.pieces(squeezed))
        undo.end()
        assert b"".join(pieces) == data and max(map(len, pieces)) <= PIECE
    with pytest.raises(ApiError, match="br: expected one of gzip"):
        content_decoder(["identity", "br"])


@pytest.mark.parametrize(
    "path, body", [(CHAT, HI), ("/tokenize", b'{"content": "x"}'), ("/completions", b'{"prompt": "x"}')]
)
def test_a_byte_order_mark_is_ignored(server, path, body):
    assert post(server, b"\xef\xbb\xbf" + body, path=path).status_code == 200
    assert post(server, zipped(b"\xef\xbb\xbf" + body), "gzip", path).status_code == 200


@pytest.mark.parametrize(
    "body", ["\ufeff\ufeff{}".encode(), HI.decode().encode("utf-16"), HI.decode().encode("utf-32")]
)
def test_a_second_mark_and_other_encodings_of_text_are_refused(server, body):
    assert server.error(post(server, body)) == (400, None, "invalid_json")


HALF = r'"a\ud83dz"'
ROUTES = [
    (CHAT, '{"messages": [{"role": "user", "content": %s}]}', "messages[0].content"),
    (
        CHAT,
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": %s}]}]}',
        "messages[0].content[0].text",
    ),
    (CHAT, '{"messages": [{"role": "user", "content": "Hi"}], "stop": ["b", %s]}', "stop[1]"),
    (CHAT, '{"messages": [{"role": "user", "content": "Hi"}], "model": %s}', "model"),
    (CHAT, '{"messages": [{"role": "user", "content": "Hi"}], "metadata": {"k": %s}}', "metadata.k"),
    (CHAT, '{"messages": [{"role": "user", "content": "Hi"}], "nobody_knows": [%s]}', "nobody_knows[0]"),
    (CHAT, '{"messages": [{"role": "user", "content": "Hi"}], "metadata": {%s: 1}}', "metadata"),
    (CHAT, '{"messages": [{"role": "user", "content": "Hi"}], %s: 1}', None),
    ("/v1/completions", '{"prompt": %s}', "prompt"),
    ("/v1/responses", '{"input": [{"role": "user", "content": %s}]}', "input[0].content"),
    ("/v1/responses/input_tokens", '{"input": %s}', "input"),
    ("/completions", '{"prompt": ["x", %s]}', "prompt[1]"),
    ("/tokenize", '{"content": %s}', "content"),
    ("/tokenize", '{"prompt": %s}', "prompt"),
    ("/apply-template", '{"messages": [{"role": "user", "content": %s}]}', "messages[0].content"),
    ("/detokenize", '{"tokens": [%s]}', "tokens[0]"),
    (
        "/v1/look",
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": %s}]}',
        "messages[1].content",
    ),
    ("/inferences/llamacpp/loadmodel", '{"llama_model_path": %s}', "llama_model_path"),
    ("/inferences/llamacpp/chat_completion", '{"messages": [{"role": %s, "content": "a"}]}', "messages[0].role"),
]


@pytest.mark.parametrize("path, body, param", ROUTES)
@pytest.mark.parametrize("half", [HALF, HALF.upper().replace("A\\U", "a\\u"), r'"a\udc00z"', r'"a\ude00\ud83d"'])
def test_half_a_surrogate_pair_is_refused_on_every_route(server, path, body, param, half):
    answer = post(server, (body % half).encode(), path=path)
    assert server.error(answer) == (400, param, "invalid_value")
    place = param or "a name"
    assert answer.json()["error"]["message"] == f"{place}: character 1: half of a surrogate pair, which is not text"


def test_every_route_with_a_json_body_is_listed(server):
    """Check that `ROUTES` covers each handler that reads a body."""
    readers = {route.path for route in server.api.routes() if "GET" not in route.methods}
    assert readers == {path for path, _, _ in ROUTES} | set(CHAT_PATHS)


def test_a_complete_surrogate_pair_is_accepted(server):
    answer = post(server, rb'{"content": "a\ud83d\ude00 \\ud800"}', path="/tokenize")
    assert server.post("/detokenize", answer.json()).json()["content"] == "a\U0001f600 \\ud800"
