"""The shape of an answer and of the list of models; what parameters mean."""

from .case import PYTHON, REFERENCE, DemandGroup, Untold, answered, choice, need, prompt_tokens, refused, text_of
from .media import ASK, image
from .target import Target

ANSWERS = DemandGroup("answers")
REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")


@ANSWERS.demand(
    "must", "An answer has the fields that OpenAI's types require.", f"{PYTHON}, types/chat/chat_completion.py"
)
def fields(s: Target) -> None:
    answer = s.ask([image(), ASK])
    whole, first = answered(answer), choice(answer)
    kinds = {"id": str, "object": str, "created": int, "model": str, "choices": list}
    wrong = [name for name, kind in kinds.items() if not isinstance(whole.get(name), kind)]
    message = first.get("message") or {}
    wrong += [] if whole.get("object") == "chat.completion" else ["object"]
    wrong += [] if first.get("finish_reason") in REASONS else ["choices[0].finish_reason"]
    wrong += [] if first.get("index") == 0 else ["choices[0].index"]
    wrong += [] if message.get("role") == "assistant" else ["choices[0].message.role"]
    need(not wrong, f"wrong or missing: {', '.join(dict.fromkeys(wrong))}")


@ANSWERS.demand(
    "must", "usage has prompt_tokens, completion_tokens, and their sum.", f"{PYTHON}, types/completion_usage.py"
)
def usage(s: Target) -> None:
    found = answered(s.ask([image(), ASK])).get("usage") or {}
    numbers = [found.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    counts = [number for number in numbers if isinstance(number, int)]
    need(len(counts) == 3 and counts[0] + counts[1] == counts[2], f"usage {found}")


@ANSWERS.demand(
    "may",
    "usage says how many of the prompt's tokens are of pictures.",
    f"{PYTHON}, prompt_tokens_details.image_tokens",
)
def image_tokens(s: Target) -> None:
    details = (answered(s.ask([image(), ASK])).get("usage") or {}).get("prompt_tokens_details") or {}
    need(bool(details.get("image_tokens")), f"prompt_tokens_details {details}")


@ANSWERS.demand(
    "must",
    "The body of an answer is application/json: openai-node gives any other back as a text.",
    "openai-node 6, core/api-promise",
)
def content_type(s: Target) -> None:
    kind = s.ask([image(), ASK]).headers.get("content-type", "")
    need("application/json" in kind, f"content-type {kind!r}")


@ANSWERS.demand("should", "Every answer has an x-request-id, which SDKs show.", f"{PYTHON}, _response.py")
def request_id(s: Target) -> None:
    need(bool(s.ask([ASK]).headers.get("x-request-id")), "no header x-request-id")


@ANSWERS.demand("must", "null stands for the default.", f"{REFERENCE}: parameters are optional or null")
def null_is_default(s: Target) -> None:
    nulls = dict.fromkeys(("stop", "top_p", "seed", "n", "stream", "response_format", "logit_bias", "user"))
    with_nulls = s.ask([image(), ASK], **nulls)
    need(text_of(with_nulls) == text_of(s.ask([image(), ASK])), "another answer than without them")


@ANSWERS.demand("should", "n answers have the indexes 0 to n - 1.", f"{REFERENCE}, n")
def several(s: Target) -> None:
    choices = answered(s.ask([image(), ASK], n=2)).get("choices") or []
    need([c.get("index") for c in choices] == [0, 1], f"{len(choices)} choices")


@ANSWERS.demand("should", "At temperature 0 the same request has the same answer.", f"{REFERENCE}, temperature")
def repeated(s: Target) -> None:
    first, second = (text_of(s.ask([image(), ASK])) for _ in range(2))
    need(first == second, f"{first!r}, then {second!r}")


@ANSWERS.demand("should", "The same seed gives the same answer.", f"{REFERENCE}, seed")
def seeded(s: Target) -> None:
    first, second = (text_of(s.ask([image(), ASK], temperature=1, seed=7)) for _ in range(2))
    need(first == second, f"{first!r}, then {second!r}")


@ANSWERS.demand(
    "must", "max_tokens bounds an answer, and finish_reason says length where it did.", f"{REFERENCE}, max_tokens"
)
def max_tokens(s: Target) -> None:
    _bounded(s, max_tokens=1)


@ANSWERS.demand("must", "max_completion_tokens bounds an answer.", f"{REFERENCE}, max_completion_tokens")
def max_completion_tokens(s: Target) -> None:
    _bounded(s, max_tokens=..., max_completion_tokens=1)


def _bounded(s: Target, **bound: object) -> None:
    long = s.ask([image(), ASK])
    if ((answered(long).get("usage") or {}).get("completion_tokens") or 0) < 3:
        raise Untold("the model's answer is too short to be cut")
    answer = s.ask([image(), ASK], **bound)
    count = (answered(answer).get("usage") or {}).get("completion_tokens")
    reason = choice(answer).get("finish_reason")
    need(count == 1 and reason == "length", f"{count} tokens, finish_reason {reason!r}")


@ANSWERS.demand("must", "An answer ends in front of a stop string.", f"{REFERENCE}, stop: the text will not contain it")
def stop(s: Target) -> None:
    whole = text_of(s.ask([image(), ASK]))
    at = next((i for i in range(1, len(whole)) if whole[i].isalnum() and whole[i] not in whole[:i]), None)
    if at is None:
        raise Untold(f"the model's answer {whole!r} has no place to stop at")
    cut = s.ask([image(), ASK], stop=[whole[at]])
    need(text_of(cut) == whole[:at], f"{text_of(cut)!r} with stop {whole[at]!r}, of {whole!r}")
    need(choice(cut).get("finish_reason") == "stop", f"finish_reason {choice(cut).get('finish_reason')!r}")


@ANSWERS.demand("must", "The models are listed as OpenAI lists them.", f"{PYTHON}, types/model.py")
def models(s: Target) -> None:
    listed = answered(s.send("GET", "/models"))
    data = listed.get("data")
    need(listed.get("object") == "list" and isinstance(data, list) and bool(data), f"{listed}")
    wrong = [m for m in data if m.get("object") != "model" or not isinstance(m.get("id"), str)]
    need(not wrong, f"{wrong[:1]}")


@ANSWERS.demand(
    "must",
    "A prompt beyond the context is refused, and nothing of it is left out.",
    f"{REFERENCE}; code context_length_exceeded",
)
def too_long(s: Target) -> None:
    refused(s.ask("one two three four five six seven eight nine ten " * 20_000))


@ANSWERS.demand(
    "should", "A picture's place does not change how its text is counted.", f"{REFERENCE}, usage.prompt_tokens"
)
def counts_add_up(s: Target) -> None:
    one, two, three = (prompt_tokens(s.ask([*(image(),) * n, ASK])) for n in (1, 2, 3))
    need(three - two == two - one, f"prompt_tokens {one}, {two}, {three} with one, two and three equal pictures")
