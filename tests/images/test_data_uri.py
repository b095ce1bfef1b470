"""The data of a data URI are URL characters (RFC 2397): `%3D` is `=`."""

import base64
from urllib.parse import quote

import pytest

from llava_ref.chat import messages
from llava_ref.errors import PromptError

PNG = bytes(range(251)) * 3 + b"!"  # no picture: nothing is decoded here. Its base64 holds + and / and ends in =
B64 = base64.b64encode(PNG).decode()


def source(url):
    part = {"type": "image_url", "image_url": {"url": url}}
    ((image,),) = [message.parts for message in messages.parse_messages([{"role": "user", "content": [part]}])]
    return image.source


@pytest.mark.parametrize("pieces", [1 << 20, 1, 2, 3, 5, 1000])
def test_escapes_are_read(pieces, monkeypatch):
    monkeypatch.setattr(messages, "ESCAPED", pieces)
    assert {"+", "/", "="} <= set(B64)
    for data in (
        B64,
        B64.replace("=", "%3D"),
        B64.replace("=", "%3d"),
        quote(B64, safe=""),
        "".join(f"%{ord(c):02X}" for c in B64),
        B64[:20] + "%0A" + B64[20:40] + "%20" + B64[40:],
    ):
        assert source("data:image/png;base64," + data) == PNG


@pytest.mark.parametrize("data", [B64 + "%", B64 + "%3", B64[:8] + "%zz" + B64[8:], B64 + "%C3%A9", B64 + "%2525"])
def test_what_is_no_base64_behind_its_escapes_is_refused(data):
    with pytest.raises(PromptError, match=r"image_url\.url: not base64"):
        source("data:image/png;base64," + data)


@pytest.mark.parametrize("data", [B64.replace("=", "%3D"), quote(B64, safe="")])
def test_bare_base64_has_no_escapes(data):
    with pytest.raises(PromptError, match="not base64"):
        source(data)
