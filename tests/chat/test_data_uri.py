"""Test the percent-escapes of data URIs (RFC 2397): `%3D` is `=`."""

import base64
from urllib.parse import quote

import pytest

from llava_ref.chat import messages, sources
from llava_ref.errors import PromptError

PNG = bytes(range(251)) * 3 + b"!"  # not a picture: only base64 is decoded here. Its base64 has + and / and ends in =
B64 = base64.b64encode(PNG).decode()


def source(url):
    part = {"type": "image_url", "image_url": {"url": url}}
    ((image,),) = [message.parts for message in messages.parse_messages([{"role": "user", "content": [part]}])]
    return image.source


@pytest.mark.parametrize("block", [1 << 20, 1, 2, 3, 5, 1000])
def test_escapes_are_decoded_across_blocks(block, monkeypatch):
    monkeypatch.setattr(sources, "ESCAPED", block)
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
def test_escapes_that_hide_no_base64_are_refused(data):
    with pytest.raises(PromptError, match=r"image_url\.url: not base64"):
        source("data:image/png;base64," + data)


@pytest.mark.parametrize("data", [B64.replace("=", "%3D"), quote(B64, safe="")])
def test_escapes_outside_data_uris_are_refused(data):
    with pytest.raises(PromptError, match="not base64"):
        source(data)
