"""An answer to a session that plays a script, and a decoder that spells bytes."""

import codecs
import time
from dataclasses import replace

import numpy as np
import pytest

from llava_ref.chat.chunks import ImageChunk, TextChunk
from llava_ref.errors import ParameterError, PromptError
from llava_ref.generation.answer import Answer, Stream
from llava_ref.generation.request import Clock, Request, remaining, usage
from llava_ref.generation.reuse import cached_positions
from llava_ref.generation.sampler import Sampler
from llava_ref.generation.sampling import Sampling
from llava_ref.generation.stops import StopStrings
from llava_ref.generation.units import PictureRows
from llava_ref.images.decoding import DecodedImage
from llava_ref.models.family import Span
from llava_ref.study.attention import picture_positions

END, V = 256, 257  # a token per byte, and one that ends the answer


class Script:
    """A session whose likeliest next token is always the script's next."""

    def __init__(self, script: list[int]) -> None:
        self.script, self.fed = list(script), []

    def feed(self, parts):
        self.fed.append([np.asarray(part).tolist() for part in parts])
        logits = np.zeros(V, np.float32)
        logits[self.script[len(self.fed) - 1]] = 1
        return logits


class Utf8:
    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self.decoder.decode(bytes([token]))

    def flush(self) -> str:
        return self.decoder.decode(b"", True)


def steps_of(answer: Answer, session: Script):
    while not answer.done:
        began = time.perf_counter()
        yield answer.take(session.feed(answer.parts), began)


def run(text: bytes, *, stop=(), limit=100, end=True):
    session = Script([*text, END] if end else list(text))
    ends, stops = frozenset({END, 5}), StopStrings(stop)
    answer = Answer([[1, 2], [3]], Sampler(Sampling(), V), Utf8(), stops, ends, limit)
    return session, list(steps_of(answer, session))


def text_of(steps):
    return "".join(step.text for step in steps)


def test_an_answer_ends_with_the_end_token():
    session, steps = run("hé!".encode())
    assert [step.text for step in steps] == ["h", "", "é", "!", ""]
    assert [step.token_id for step in steps] == [*"hé!".encode(), END]
    assert [step.finish_reason for step in steps] == [None] * 4 + ["stop"]
    assert session.fed == [[[1, 2], [3]], [[ord("h")]], [[0xC3]], [[0xA9]], [[ord("!")]]]


def test_every_end_token_ends_an_answer():
    _, steps = run(b"ab\x05cd")
    assert (text_of(steps), steps[-1].finish_reason) == ("ab", "stop")


def test_an_answer_ends_at_the_limit():
    _, steps = run(b"abcdef", limit=3)
    assert (text_of(steps), [step.finish_reason for step in steps]) == ("abc", [None, None, "length"])


def test_the_end_token_at_the_limit_is_a_stop():
    _, steps = run(b"ab", limit=3)
    assert steps[-1].finish_reason == "stop"


def test_half_a_character_at_the_end_is_shown_as_unknown():
    _, steps = run("aé".encode()[:2], limit=2, end=False)
    assert text_of(steps) == "a\N{REPLACEMENT CHARACTER}"
    _, steps = run("aé".encode()[:2])
    assert text_of(steps) == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    "text, stop, want",
    [
        ("one STOP two", ["STOP"], "one "),
        ("one ST two", ["STOP"], "one ST two"),
        ("one ST", ["STOP"], "one ST"),
        ("aaab", ["aab"], "a"),
        ("abababac!", ["ababac"], "ab"),
        ("x</s>y", ["###", "</s>"], "x"),
        ("abcd", ["bcd", "cd", "abce"], "a"),
        ("STOP", ["STOP"], ""),
        ("daß é", ["ß"], "da"),
        ("日本語", ["本"], "日"),
    ],
)
def test_stop_strings(text, stop, want):
    _, steps = run(text.encode(), stop=stop)
    stopped = any(s in text for s in stop)
    assert text_of(steps) == want
    assert steps[-1].finish_reason == "stop"
    assert (steps[-1].token_id != END) == stopped, "a stop string ends the work at once"


def test_text_is_held_only_while_a_stop_string_may_be_beginning():
    _, steps = run(b"a<b</c", stop=["</s>"])
    assert [step.text for step in steps] == ["a", "", "<b", "", "", "</c", ""]


def test_held_text_is_released_at_the_limit():
    _, steps = run(b"a</s", stop=["</s>"], limit=4)
    assert [step.text for step in steps] == ["a", "", "", "</s"]
    assert steps[-1].finish_reason == "length"


@pytest.mark.parametrize("seed", range(20))
def test_stop_strings_do_not_depend_on_how_text_is_cut(seed):
    rng = np.random.default_rng(seed)
    text = "".join(rng.choice(list("ab"), 40))
    stops = ["".join(rng.choice(list("ab"), rng.integers(2, 8))) for _ in range(3)]
    ends = {end for stop in stops for end in [text.find(stop) + len(stop)] if stop in text}
    stops_met = [stop for stop in stops if ends and text[: min(ends)].endswith(stop)]
    want = text[: min(ends) - max(map(len, stops_met))] if ends else text
    matcher, shown, left = StopStrings(stops), "", text
    while left and not matcher.met:
        cut = 1 if seed % 2 else int(rng.integers(1, 6))
        shown += matcher.push(left[:cut])
        left = left[cut:]
    assert shown + matcher.flush() == want
    assert matcher.met == bool(ends)


def test_the_stop_string_that_is_complete_first_counts():
    matcher = StopStrings(["abcd", "bc"])
    assert (matcher.push("abcd"), matcher.met) == ("a", True), "as it would letter by letter"


def test_half_a_character_can_be_a_stop_string():
    _, steps = run("aé".encode()[:2], limit=2, end=False, stop=["\N{REPLACEMENT CHARACTER}"])
    assert (text_of(steps), steps[-1].finish_reason) == ("a", "stop")


@pytest.mark.parametrize("stop", ["text", [""], [3], [None]], ids=repr)
def test_a_stop_that_is_no_list_of_strings_is_refused(stop):
    with pytest.raises(ParameterError, match="stop: "):
        StopStrings(stop)


def test_remaining():
    assert remaining(10, 100, 5) == 5
    assert remaining(10, 100, None) == 90
    assert remaining(10, 12, 5) == 2, "the context ends first"
    assert remaining(11, 12, 5) == 1
    words = "This model's maximum context length is 12 tokens, but the prompt has 12, and an answer needs room"
    with pytest.raises(PromptError, match=words):
        remaining(12, 12, 1)


@pytest.mark.parametrize("max_tokens", [0, -1, 1.5, True, "8"], ids=repr)
def test_max_tokens_is_checked(max_tokens):
    with pytest.raises(ParameterError, match="max_tokens: "):
        remaining(1, 10, max_tokens)


class Shown:
    shown = "ab <image>"


REQUEST = Request(
    prompt=Shown(),
    chunks=(TextChunk((0, 8)), ImageChunk(0), TextChunk((9,))),
    images=(DecodedImage(np.zeros((4, 6, 3), np.uint8), "PNG", 1, ("a warning",)),),
    spans=(Span((1, 3), (3,)),),
)


STRETCHES = replace(
    REQUEST,
    chunks=(ImageChunk(0, 0, 1), TextChunk((8,)), ImageChunk(0, 1, 3), TextChunk((9,)), ImageChunk(1)),
    images=REQUEST.images * 2,
    spans=(Span((1, 3), (1, "a", 2)), Span((1, 2), (2,))),
)


def test_a_picture_of_several_stretches():
    """Its rows stand in order, text between them; each stretch is described, and studies find the rows again."""
    assert STRETCHES.token_ids == [-1, 8, -1, -1, 9, -1, -1]
    rows = [np.arange(6.0).reshape(3, 2), np.ones((2, 2))]
    parts = STRETCHES.parts(rows)
    assert [len(part) for part in parts] == [1, 1, 2, 1, 2]
    first, _, second, _, other = parts
    assert isinstance(first, PictureRows) and isinstance(second, PictureRows) and isinstance(other, PictureRows)
    assert (np.concatenate([first.data, second.data]) == rows[0]).all() and (other.data == rows[1]).all()
    assert (first.first, second.first, other.first) == (0, 1, 0)
    size = {"type": "image", "width": 6, "height": 4}
    assert STRETCHES.describe() == [
        size | {"n_tokens": 1, "image": 0, "first": 0},
        {"type": "text", "token_ids": [8]},
        size | {"n_tokens": 2, "image": 0, "first": 1},
        {"type": "text", "token_ids": [9]},
        size | {"n_tokens": 2},
    ]
    assert [picture_positions(STRETCHES, i) for i in (0, 1)] == [[0, 2, 3], [5, 6]]
    assert cached_positions(parts, [rows[0]], 0) == 3 and cached_positions(parts, [rows[0]], 2) == 4


def stream(text: bytes, limit: int = 100) -> tuple[Script, Stream]:
    session = Script([*text, END])
    sampler = Sampler(Sampling(), V)

    def begin():
        return steps_of(Answer([[7, 8]], sampler, Utf8(), StopStrings(()), frozenset({END}), limit), session)

    return session, Stream(REQUEST, Clock(load_s=0.5), begin)


def test_a_stream_gives_pieces_then_the_reply():
    session, pieces = stream("né".encode())
    assert session.fed == [], "nothing runs before it is asked for"
    assert list(pieces) == ["n", "é"]
    reply = pieces.reply
    assert (reply.text, reply.finish_reason, reply.prompt) == ("né", "stop", "ab <image>")
    assert reply.token_ids == (*"né".encode(), END)
    assert reply.warnings == ("a warning",)
    assert reply.chunks == [
        {"type": "text", "token_ids": [0, 8]},
        {"type": "image", "n_tokens": 3, "width": 6, "height": 4},
        {"type": "text", "token_ids": [9]},
    ]
    assert reply.usage["prompt_tokens"] == 6 and reply.usage["completion_tokens"] == 4
    assert reply.timings["load_s"] == 0.5 and reply.timings["decode_tok_s"] > 0


def test_closing_a_stream_stops_the_work():
    session, pieces = stream(b"abcdef")
    assert (next(pieces), next(pieces)) == ("a", "b")
    pieces.close()
    assert list(pieces) == [] and len(session.fed) == 2
    assert (pieces.reply.text, pieces.reply.finish_reason) == ("ab", None)


def test_one_token_has_no_decode_rate():
    reply = stream(b"abc", limit=1)[1].finish()
    assert reply.timings["decode_tok_s"] is None and reply.timings["prefill_tok_s"] > 0


def test_positions_and_usage():
    assert REQUEST.token_ids == [0, 8, -1, -1, -1, 9]
    assert usage(REQUEST.token_ids, 5) == {
        "prompt_tokens": 6,
        "completion_tokens": 5,
        "total_tokens": 11,
        "prompt_tokens_details": {"text_tokens": 3, "image_tokens": 3, "cached_tokens": 0},
    }
