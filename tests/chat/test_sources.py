"""Test the forms of a picture in a message: text for all, objects and paths only for programs."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_ref.chat.messages import ImagePart

from .parsing import B64, PNG, parse, refuse, user


@pytest.mark.parametrize("allow_objects", [False, True])
@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{B64}"}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{B64}", "detail": "low"}},
        {"type": "image_url", "image_url": f"data:image/png;base64,{B64}"},
        {"type": "image_url", "image_url": B64},
        {"type": "image_url", "image_url": {"url": B64.rstrip("=")}},
        {"type": "image_url", "image_url": {"url": base64.urlsafe_b64encode(PNG).decode()}},
        {"type": "image_url", "image_url": {"url": base64.urlsafe_b64encode(PNG).decode().rstrip("=")}},
        {"type": "image_url", "image_url": {"url": "\n" + "\r\n ".join(re.findall(".{1,7}", B64)) + "\n"}},
        {"type": "image_url", "image_url": {"url": f"  DATA:video/jpeg;charset=utf-8;name=a.b;BASE64,{B64}"}},
        {"type": "image_url", "image_url": {"url": f"data:;base64, {B64}"}},
        {"type": "image_url", "image_url": {"url": f"data:base64,{B64}"}},
        {"type": "input_image", "image_url": f"data:image/webp;base64,{B64}", "detail": "auto", "file_id": None},
        {"type": "image", "url": f"data:image/png;base64,{B64}"},
        {"type": "image", "base64": B64},
        {"type": "image", "image": f"data:image/png;base64,{B64}"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}},
        {"type": "image", "source": {"type": "url", "url": f"data:image/png;base64,{B64}"}, "cache_control": {"a": 1}},
    ],
    ids=lambda part: str(part)[:60],
)
def test_pictures_as_text(part, allow_objects):
    (image,) = parse(part, allow_objects=allow_objects)
    assert isinstance(image, ImagePart) and image.source == PNG
    assert image.detail == ("low" if "'low'" in str(part) else None)


def test_base64_in_a_bare_image_field_is_a_path_for_a_program_and_data_for_a_server():
    part = {"type": "image", "image": B64}
    assert parse(part)[0].source == Path(B64)
    assert parse(part, allow_objects=False)[0].source == PNG


def test_data_and_urls_are_never_paths():
    assert parse({"type": "image", "image": f" \nDATA:;base64,{B64}"})[0].source == PNG
    assert "URL images are off" in refuse(user({"type": "image", "image": " HTTPS://example.com/a"}))


def test_programs_may_pass_objects():
    array, picture = np.zeros((2, 3, 3), np.uint8), Image.new("RGB", (3, 2))
    for key in ("image", "path"):
        for given, want in [(array, array), (picture, picture), ("a/b.png", Path("a/b.png")), (Path("c"), Path("c"))]:
            (part,) = parse({"type": "image", key: given})
            assert part.source is want or part.source == want
            assert part.where == "messages[0].content[0]"
    assert [parse({"type": "image", "image": kind(PNG)})[0].source for kind in (bytes, bytearray, memoryview)] == [
        PNG
    ] * 3


def _kind(value):
    return type(value).__name__


@pytest.mark.parametrize(
    "value", [PNG, Path("a.png"), np.zeros((2, 2, 3)), Image.new("L", (1, 1)), 7, ["a"]], ids=_kind
)
def test_servers_refuse_objects(value):
    message = refuse(user({"type": "image", "image": value}), allow_objects=False)
    assert message.startswith("messages[0].content[0]: image: expected a string with a data URI or base64, got ")


@pytest.mark.parametrize("settings", [{}, {"allow_objects": False}], ids=["program", "server"])
@pytest.mark.parametrize("field", ["image_url", "url"])
@pytest.mark.parametrize(
    "value, problem",
    [
        ("http://example.com/cat.png", "URL images are off"),
        ("https://example.com/cat.png", "URL images are off"),
        (" \n HTTPS://example.com/cat.png", "URL images are off"),
        ("file:///etc/passwd", "file: is not supported and files are not opened here"),
        ("ftp://example.com/a", "ftp: is not supported"),
        ("C:\\cat.png", "c: is not supported"),
        ("/etc/passwd", "files are not opened here"),
        ("/home/me/cat.png", "files are not opened here"),
        ("~/cat", "files are not opened here"),
        ("cat", "files are not opened here"),
        ("", "empty"),
        (" = ", "not base64"),
        ("data:image/png,abc", "must be 'data:<type>;base64,<data>'"),
        ("data:image/png;base64", "must be 'data:<type>;base64,<data>'"),
        ("data:image/png;base64,", "empty"),
        (f"data:image/png;base64,{B64},x", "character that does not belong"),
        (f"data:image/png;base64,{B64[:-2]}===", "character that does not belong"),
        (f"data:image/png;base64,{B64[:-2]}=", "wrong padding"),
        (f"data:image/png;base64,{B64[:-3]}", "cut short"),
        (f"data:image/png;base64,{B64[:8]}=={B64[8:]}", "character that does not belong"),
        (f"data:image/png;base64,{B64[:40]}_{B64[41:]}", "character that does not belong"),  # both alphabets at once
        (f"data:image/png;base64,{B64[:-3]}é==", "character that does not belong"),
        (f"data:image/png;base64,{B64}\x00", "character that does not belong"),
    ],
)
def test_text_that_is_not_a_picture_is_refused(field, value, problem, settings):
    kind = "image" if field == "url" else "image_url"
    message = refuse(user({"type": "text", "text": "x"}, {"type": kind, field: value}), **settings)
    assert message.startswith(f"messages[0].content[1]: {field}: ") and problem in message


def test_servers_open_no_path():
    message = refuse(user({"type": "image", "path": "/etc/passwd"}), allow_objects=False)
    assert message.startswith("messages[0].content[0]: path: files are not opened here")
