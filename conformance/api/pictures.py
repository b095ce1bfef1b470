"""Sources and formats of pictures, and that none is taken that cannot be read."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

from .case import REFERENCE, VISION, DemandGroup, Untold, need, need_difference, prompt_tokens, refused, seen, text_of
from .media import ASK, data_uri, image, part, picture
from .target import Target

PICTURES = DemandGroup("pictures")
FORMATS = f"{VISION}: PNG, JPEG, WEBP and non-animated GIF"
URL = f"{REFERENCE}, messages[].content[].image_url.url"


@PICTURES.demand("must", "A PNG in a data URI is answered.", FORMATS)
def png(s: Target) -> None:
    text_of(s.ask([image(), ASK]))


@PICTURES.demand("must", "A JPEG in a data URI is answered.", FORMATS)
def jpeg(s: Target) -> None:
    text_of(s.ask([image(kind="jpeg"), ASK]))


@PICTURES.demand("must", "A WEBP in a data URI is answered.", FORMATS)
def webp(s: Target) -> None:
    text_of(s.ask([image(kind="webp"), ASK]))


@PICTURES.demand("must", "A GIF in a data URI is answered.", FORMATS)
def gif(s: Target) -> None:
    text_of(s.ask([image(kind="gif"), ASK]))


@PICTURES.demand("must", "The model sees the picture: another picture changes the answer or its probabilities.", VISION)
def seen_by_the_model(s: Target) -> None:
    need_difference(seen(s, [image(0), ASK]), seen(s, [image(1), ASK]), "two pictures")


@PICTURES.demand("must", "A picture makes the prompt longer.", f"{REFERENCE}, usage.prompt_tokens")
def counted(s: Target) -> None:
    without, with_one = prompt_tokens(s.ask([ASK])), prompt_tokens(s.ask([image(), ASK]))
    need(with_one > without, f"prompt_tokens {with_one} with a picture, {without} without one")


@PICTURES.demand(
    "should", "A picture counts as the positions that it takes, 8 at least.", f"{REFERENCE}, usage.prompt_tokens"
)
def counted_in_full(s: Target) -> None:
    without, with_one = prompt_tokens(s.ask([ASK])), prompt_tokens(s.ask([image(), ASK]))
    need(with_one >= without + 8, f"prompt_tokens {with_one} with a picture, {without} without one")


@PICTURES.demand("must", "Base64 that cannot be decoded is the client's fault.", f"{URL}; SDKs send 5xx again")
def broken_base64(s: Target) -> None:
    refused(s.ask([part("data:image/png;base64,@@@@not*base64@@@@"), ASK]))


@PICTURES.demand("must", "A file that is no picture is the client's fault.", f"{URL}; SDKs send 5xx again")
def no_picture(s: Target) -> None:
    refused(s.ask([part(data_uri(b"This is a text and no picture. " * 4)), ASK]))


@PICTURES.demand("should", "A picture that ends in its middle is refused, not filled up.", URL)
def cut_short(s: Target) -> None:
    data = picture("PNG")
    refused(s.ask([part(data_uri(data[: len(data) * 2 // 3])), ASK]))


@PICTURES.demand("must", "A URL that leads nowhere is the client's fault.", f"{URL}; SDKs send 5xx again")
def unreachable(s: Target) -> None:
    with _served(picture("PNG")) as url:
        if 400 <= (answer := s.ask([part(url), ASK])).status < 500:
            raise Untold(f"the server refuses URLs: {answer.said()}")
    refused(s.ask([part("http://127.0.0.1:9/none.png"), ASK]))


@PICTURES.demand(
    "may", "A picture is fetched from an http URL, and is the same picture then.", f"{URL}: a URL or base64"
)
def fetched(s: Target) -> None:
    with _served(picture("PNG")) as url:
        answer = s.ask([part(url), ASK])
    if 400 <= answer.status < 500:
        raise Untold(f"the server refuses URLs: {answer.said()}")
    need(text_of(answer) == text_of(s.ask([image(), ASK])), "another answer than for the same file in a data URI")


@PICTURES.demand("should", "detail may be auto, low or high.", f"{REFERENCE}, messages[].content[].image_url.detail")
def detail(s: Target) -> None:
    for value in ("auto", "low", "high"):
        text_of(s.ask([part(data_uri(picture()), detail=value), ASK]))


@contextmanager
def _served(data: bytes) -> Iterator[str]:
    """Serve one file on this machine inside the block; yields its URL."""

    class OneFile(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), OneFile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/picture.png"
        server.shutdown()
