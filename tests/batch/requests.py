"""Requests of all kinds about the embedded pictures, as the lines of a batch."""

import json

import llava_ref

from ..api.running import data_uri, picture

PICTURES = llava_ref.embedded()[0].parent / "pictures"
CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"


def line(name, body, url=CHAT, **more):
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body} | more)


def see(url, question, **settings):
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 6} | settings


def say(text, **settings):
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 3} | settings


GOOD = [
    line("star", see(data_uri(picture("count.png")), "Count the stars.")),
    line("warm", see(data_uri(picture("digit.png")), "What is the digit?", temperature=2.0, n=2, logprobs=True)),
    line("raw", {"prompt": "one two", "max_tokens": 4, "temperature": 1.5, "logprobs": 1}, COMPLETION),
    line("response", {"input": "Hi", "max_output_tokens": 4, "temperature": 1.5}, RESPONSE),
    line("again", see(data_uri(picture("count.png")), "Count the stars.", store=True)),
]
"""The last asks for what has no effect, and is about the same picture as the first."""


def write(path, lines):
    path.write_text("".join(f"{one}\n" for one in lines))
    return path


def read(path):
    return [json.loads(one) for one in path.read_bytes().splitlines()]
