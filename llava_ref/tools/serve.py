"""`serve`: run the HTTP server."""

import argparse
import asyncio
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ParameterError
from ..extras import absent
from ..model import Llava
from . import options
from .limits import add_hosts, add_limits, limits
from .parser import Example, Parser

if TYPE_CHECKING:
    from ..api.limits import Limits
    from ..api.models import Models

PASSIVE = socket.AI_PASSIVE
log = logging.getLogger("llava_ref.server")  # unlike print, logging to a full disk loses lines without an exception


EXAMPLES: Sequence[Example] = (
    ("llava-ref serve", "the address of the page and the API, on standard error; Ctrl-C ends it"),
    (
        "llava-ref serve -m text.gguf --mmproj mmproj.gguf --host 0.0.0.0 --api-key SECRET",
        "the same for another pair, reachable from other machines with the key",
    ),
)


def add_arguments(parser: Parser) -> None:
    options.add_model(parser)
    options.add_mmproj(parser)
    options.add_text(parser)
    options.add_running(parser)
    group = parser.group("access")
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: 127.0.0.1, this machine only")
    group.add_argument("--port", type=int, default=3928, metavar="N", help="default: 3928; 0 takes a free one")
    group.add_argument("--api-key", metavar="KEY", help="key that every route but /health requires")
    add_hosts(parser)
    does = "folder for records of answers, which clients may then ask for"
    group.add_argument("--record-dir", type=Path, metavar="DIR", help=does)
    for name, (parse, metavar, text) in REPEATABLE.items():
        text = f"{text}; repeatable"
        group.add_argument(f"--{name}", type=parse, action="append", default=[], metavar=metavar, help=text)
    add_limits(parser)


REPEATABLE = {
    "allow-model-dir": (Path, "DIR", "folder that loadmodel may read"),
    "allow-host": (str, "NAME", "a name that the server answers to, besides addresses and localhost"),
    "cors-origin": (str, "ORIGIN", "origin of a page that may call the server; * for all"),
}


def run(args: argparse.Namespace) -> int:
    if problem := absent("server", ["starlette", "uvicorn", "h11", "pydantic", "markdown_it"]):
        raise ParameterError("serve", *problem.split(": ", 1))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    checked = limits(args)
    _check(args)
    with _bound(args.host, args.port) as sock:
        return asyncio.run(_serve(args, checked, sock))


def _check(args: argparse.Namespace) -> None:
    if not 0 <= args.port <= 65535:
        raise ParameterError("--port", str(args.port), "expected a number from 0 to 65535")
    if args.api_key is not None and not args.api_key.strip():
        raise ParameterError("--api-key", "empty", "expected a word that is hard to guess")
    for folder in args.allow_model_dir:
        if not folder.is_dir():
            raise ParameterError("--allow-model-dir", str(folder), "not a folder")
    if args.record_dir is not None and not os.access(args.record_dir / ".", os.W_OK):
        raise ParameterError("--record-dir", str(args.record_dir), "not a folder that can be written to")
    _check_names(args)


def _check_names(args: argparse.Namespace) -> None:
    from ..api.visitors import is_host, is_origin

    for origin in args.cors_origin:
        if not is_origin(origin):
            raise ParameterError("--cors-origin", origin, "expected an origin, as in https://pages.example, or *")
    for name in args.allow_host:
        if not is_host(name):
            raise ParameterError("--allow-host", name, "expected a host's name, without http:// and port")


def _hosts(args: argparse.Namespace, address: str) -> tuple[str, ...] | None:
    """Return the names that the server answers to, or None for every name.

    Names are checked if only this machine can reach the server, or if names are given: another name would come from a
    page that resolves its own name to this machine (DNS rebinding). Otherwise the network or the key protects it."""
    here = is_loopback(address) and args.api_key is None
    return tuple(args.allow_host) if here or args.allow_host else None


def is_loopback(address: str) -> bool:
    """Tell whether only this machine can reach a socket with this address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def _bound(host: str, port: int) -> socket.socket:
    """Bind a socket to the address without listening yet. Raises ParameterError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=PASSIVE)[0]
        with ExitStack() as stack:
            sock = stack.enter_context(socket.socket(family, kind, protocol))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            stack.pop_all()
            return sock
    except OSError as error:
        raise ParameterError("--port", f"{host}:{port}", str(getattr(error, "strerror", None) or error)) from None


def _models(args: argparse.Namespace, limits: "Limits") -> "Models":
    from ..api.models import Models

    def load(text: Path, mmproj: Path | None, n_context: int | None) -> Llava:
        return options.load_model(options.changed(args, ctx_size=n_context), text, mmproj)

    models = Models(load, tuple(args.allow_model_dir), limits.max_running, args.record_dir)
    models.start(*options.pair(args), args.ctx_size)
    return models


async def _serve(args: argparse.Namespace, limits: "Limits", sock: socket.socket) -> int:
    import uvicorn

    from ..api.fetch import Fetcher
    from ..api.page import described
    from ..api.protocol import GracefulServer, patient_protocol
    from ..api.server import Api, create_app
    from ..api.worker import Worker

    worker, models = Worker(), _models(args, limits)
    fetch = Fetcher(tuple(args.allow_image_host)) if args.allow_image_host else None
    api = Api(models, worker, limits, fetch, strict=args.strict)
    host, port = sock.getsockname()[:2]
    config = uvicorn.Config(
        create_app(api, api_key=args.api_key, origins=args.cors_origin, hosts=_hosts(args, host)),
        http=patient_protocol(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(limits.grace_seconds) + 5,
    )
    server = GracefulServer(config, worker, limits)
    if args.api_key is None and not is_loopback(host):
        log.warning(f"warning: anyone who can reach {args.host} can use this server, there is no --api-key")
    sock.listen()  # before the log tells the address, so that a client that reads it can connect
    log.info(
        f"{models.current.name} ({described(models.current)}) at http://{f'[{host}]' if ':' in host else host}:{port}"
    )
    try:
        await server.serve([sock])
    finally:
        worker.drain(0)
        worker.join(5)
        api.close()
    return server.exit_code
