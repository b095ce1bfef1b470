"""Errors: their status, their shape, and that they name the parameter."""

from .case import PYTHON, REFERENCE, DemandGroup, need, refused
from .media import ASK, part
from .target import CHAT, Target

FAULTS = DemandGroup("errors")
BODY = f"{PYTHON}, _exceptions.py: error.message, type, param, code"


@FAULTS.demand("must", "An error is an object with a message and a type.", BODY)
def shape(s: Target) -> None:
    error = refused(s.ask([part("data:image/png;base64,@@@@"), ASK]))
    need(isinstance(error.get("type"), str), f"{error}")


@FAULTS.demand("should", "An error has param and code, null or texts.", BODY)
def param_and_code(s: Target) -> None:
    error = refused(s.ask([part("data:image/png;base64,@@@@"), ASK]))
    wrong = [name for name in ("param", "code") if not isinstance(error.get(name, 0), str | None)]
    need(not wrong, f"{', '.join(wrong)} missing or of another type: {error}")


@FAULTS.demand("must", "A body that is not JSON is the client's fault.", f"{BODY}; SDKs send 5xx again")
def not_json(s: Target) -> None:
    refused(s.send("POST", CHAT, b'{"messages": ['))


@FAULTS.demand("must", "A conversation without messages is refused.", f"{REFERENCE}, messages: required")
def no_messages(s: Target) -> None:
    refused(s.ask("", messages=...))
    refused(s.ask("", messages=[]))


@FAULTS.demand("must", "A parameter of the wrong type is refused.", f"{REFERENCE}, temperature: number")
def wrong_type(s: Target) -> None:
    refused(s.ask([ASK], temperature="hot"))


@FAULTS.demand("should", "An error names its parameter.", BODY)
def names_the_parameter(s: Target) -> None:
    error = refused(s.ask([ASK], temperature="hot"))
    need("temperature" in str(error.get("param")), f"param {error.get('param')!r}")


@FAULTS.demand("should", "A number out of its range is refused.", f"{REFERENCE}, temperature: between 0 and 2")
def out_of_range(s: Target) -> None:
    refused(s.ask([ASK], temperature=-3))


@FAULTS.demand("must", "A part of unknown type is refused, not left out.", f"{REFERENCE}, messages[].content[].type")
def unknown_part(s: Target) -> None:
    refused(s.ask([{"type": "hologram", "hologram": "AAAA"}, ASK]))


@FAULTS.demand("must", "A message with an unknown role is refused.", f"{REFERENCE}, messages[].role")
def unknown_role(s: Target) -> None:
    refused(s.ask("", messages=[{"role": "wizard", "content": "What is a circle?"}]))


@FAULTS.demand("may", "A model that is not there is refused, and not answered by another.", f"{REFERENCE}, model; 404")
def unknown_model(s: Target) -> None:
    refused(s.ask([ASK], model="no-such-model"))


@FAULTS.demand("must", "A path that is not there is answered 404.", "RFC 9110, 15.5.5")
def no_such_path(s: Target) -> None:
    answer = s.send("GET", "/no/such/path")
    need(answer.status == 404, answer.said())


@FAULTS.demand("should", "A large body is read or refused, and the connection is not broken off.", "RFC 9110, 15.5.14")
def large_body(s: Target) -> None:
    try:
        refused(s.ask("x" * 30_000_000))
    except OSError as error:
        need(False, f"the connection broke: {error}")
