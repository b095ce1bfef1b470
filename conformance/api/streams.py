"""The shape of streams, as the SDKs' helpers read them."""

from typing import Any

from .case import NODE, PYTHON, REFERENCE, STREAMING, DemandGroup, Untold, answered, need, text_of
from .media import ASK, image
from .target import HttpAnswer, Target

STREAMS = DemandGroup("streams")


def streamed(s: Target, **settings: Any) -> HttpAnswer:
    """Return a stream that began as one."""
    answer = s.ask([image(), ASK], stream=True, **settings)
    need(answer.status == 200, answer.said())
    return answer


def deltas(answer: HttpAnswer) -> list[dict[str, Any]]:
    """Return the deltas of a stream's first choice."""
    return [c["choices"][0].get("delta") or {} for c in answer.chunks if c.get("choices")]


@STREAMS.demand("must", "A stream is text/event-stream.", f"{REFERENCE}, stream: server-sent events")
def content_type(s: Target) -> None:
    kind = streamed(s).headers.get("content-type", "")
    need(kind.startswith("text/event-stream"), f"content-type {kind!r}")


@STREAMS.demand("must", "A stream ends with data: [DONE].", f"{PYTHON}, _streaming.py; {NODE}, core/streaming.ts")
def end_mark(s: Target) -> None:
    last = streamed(s).lines[-1:]
    need(last == ["data: [DONE]"], f"the last line is {last}")


@STREAMS.demand(
    "must", "The first chunk has the role assistant, and no other one has a role.", f"{NODE}, ChatCompletionStream.ts"
)
def role_first(s: Target) -> None:
    roles = [delta.get("role") for delta in deltas(streamed(s))]
    need(roles[:1] == ["assistant"] and not any(roles[1:]), f"the roles of the chunks are {roles}")


@STREAMS.demand(
    "must", "Exactly one chunk has a finish_reason, the last one with a choice.", f"{NODE}, ChatCompletionStream.ts"
)
def one_finish_reason(s: Target) -> None:
    reasons = [c["choices"][0].get("finish_reason") for c in streamed(s).chunks if c.get("choices")]
    need(bool(reasons) and bool(reasons[-1]) and not any(reasons[:-1]), f"the finish reasons are {reasons}")


@STREAMS.demand("must", "All chunks have one id, one created and the object chat.completion.chunk.", STREAMING)
def one_id(s: Target) -> None:
    heads = {(c.get("id"), c.get("created"), c.get("object")) for c in streamed(s).chunks}
    need(
        len(heads) == 1 and all(head[2] == "chat.completion.chunk" and head[0] for head in heads),
        f"{sorted(map(str, heads))}",
    )


@STREAMS.demand("must", "The pieces of a stream, joined, are the answer without a stream.", f"{REFERENCE}, stream")
def joined(s: Target) -> None:
    whole, first = text_of(s.ask([image(), ASK])), text_of(s.ask([image(), ASK]))
    if whole != first:
        raise Untold("the server answers the same request differently")
    pieces = "".join(delta.get("content") or "" for delta in deltas(streamed(s)))
    need(pieces == whole, f"{pieces!r} streamed, {whole!r} as a whole")


@STREAMS.demand(
    "must",
    "include_usage sends one more chunk, without choices and with the usage.",
    f"{REFERENCE}, stream_options.include_usage",
)
def usage_chunk(s: Target) -> None:
    chunks = streamed(s, stream_options={"include_usage": True}).chunks
    need(
        bool(chunks) and chunks[-1].get("choices") == [] and bool(chunks[-1].get("usage")),
        f"the last chunk is {chunks[-1:]}",
    )
    need(not any(c.get("usage") for c in chunks[:-1]), "another chunk has a usage, too")
    alone = answered(s.ask([image(), ASK])).get("usage") or {}
    same = [chunks[-1]["usage"].get(key) == alone.get(key) for key in ("prompt_tokens", "total_tokens")]
    need(all(same), f"{chunks[-1]['usage']} streamed, {alone} as a whole")


@STREAMS.demand(
    "must",
    "Unless it is asked for, every chunk has a choice: clients read choices[0].",
    f"{REFERENCE}, stream_options.include_usage",
)
def no_usage_unasked(s: Target) -> None:
    empty = [c for c in streamed(s).chunks if not c.get("choices")]
    need(not empty, f"a chunk without choices: {empty[:1]}")


@STREAMS.demand(
    "should", "Events have no names: openai-node takes one named error for an error.", f"{NODE}, core/streaming.ts"
)
def no_event_names(s: Target) -> None:
    named = [line for line in streamed(s).lines if line.startswith("event:")]
    need(not named, f"the line {named[:1]}")


@STREAMS.demand(
    "should", "Proxies are told to keep nothing back.", "HTML, server-sent events; nginx, X-Accel-Buffering"
)
def not_cached(s: Target) -> None:
    found = streamed(s).headers.get("cache-control", "")
    need("no-cache" in found or "no-store" in found, f"cache-control {found!r}")


@STREAMS.demand(
    "must", "A wrong request for a stream is refused with a status, before any event.", f"{PYTHON}, _base_client.py"
)
def refused_before(s: Target) -> None:
    answer = s.ask([{"type": "image_url", "image_url": {"url": "data:image/png;base64,@@"}}, ASK], stream=True)
    need(400 <= answer.status < 500, answer.said())
