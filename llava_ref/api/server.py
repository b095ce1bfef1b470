"""The ASGI application: routes, and the way of a request through queue and model. Everything it needs it is given."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import memory
from ..chat.messages import Fetch
from ..images.decoding import LARGE
from . import nitro, prepare, texts
from .body import read_body
from .edge import Edge
from .errors import ApiError
from .limits import MAX_BODIES, MAX_HELD_PIXELS, Budget, Limits
from .look import prepare_look
from .metrics import Metrics
from .models import Models
from .openapi import description
from .page import FILES, about, page_routes
from .prepare import Prepared
from .respond import PING, send_bytes, send_events, send_json, send_result
from .visitors import CHANGING, Visitors
from .worker import Job, Worker

log = logging.getLogger("llava_ref.server")
T = TypeVar("T")
Handle = Callable[[Request, Receive, Send], Awaitable[None]]
CHAT = (
    "/v1/chat/completions",
    "/chat/completions",
    "/v1/openai/chat/completions",
    "/v1/inference/chat/completions",
    "/inferences/llamacpp/chat_completion",
)


class Api:
    """One server's state and its handlers."""

    def __init__(
        self, models: Models, worker: Worker, limits: Limits, fetch: Fetch | None = None, *, strict: bool = False
    ) -> None:
        self.models, self.worker, self.limits, self.fetch = models, worker, limits, fetch
        self.strict = strict
        """Whether a parameter that has no effect is refused, and not only warned of."""
        self.metrics = Metrics()
        self._bodies = Budget(MAX_BODIES, "too many large requests at once")
        self._held = Budget(MAX_HELD_PIXELS, "too many large pictures at once")
        self._places = Budget(1 + limits.max_queue, f"{limits.max_queue} requests wait already")
        self._threads = ThreadPoolExecutor(4, "prepare")
        self._loader = ThreadPoolExecutor(2, "load")  # one loads, the other says so

    async def _thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def chat(self, request: Request, receive: Receive, send: Send) -> None:
        loaded = self.models.current
        await self._run(request, receive, send, prepare.chat, loaded, self.limits, self._held, self.fetch)

    async def completion(self, request: Request, receive: Receive, send: Send) -> None:
        await self._run(request, receive, send, prepare.completion, self.models.current)

    async def look(self, request: Request, receive: Receive, send: Send) -> None:
        await self._run(request, receive, send, prepare_look, self.models.current, self.limits, self._held, self.fetch)

    async def _run(
        self, request: Request, receive: Receive, send: Send, make: Callable[..., Prepared], *args: Any
    ) -> None:
        with ExitStack() as held:
            async with read_body(request, self.limits, self._bodies) as body:
                place = held.enter_context(self._places.of(1))
                prepared = await self._thread(make, body, *args, self.strict)
            del body
            pixels = prepared.pixels
            try:
                job = Job(prepared.model, prepared.work, place.give_back)
                await self._answer(job, prepared.stream, request, receive, send)
            finally:
                self._held.give_back(pixels)
                self.metrics.answered(prepared.streams)
        del job, prepared
        if pixels > LARGE:
            await self._thread(memory.give_back)

    async def _answer(self, job: Job, stream: bool, request: Request, receive: Receive, send: Send) -> None:
        self.worker.submit(job)
        if stream:
            request.scope.setdefault("state", {})["probe"] = PING
            await send_events(job, self.worker, self.limits, receive, send)
        else:
            await send_result(job, self.worker, receive, send)

    async def _small(self, request: Request, make: Callable[..., Any], *args: Any) -> Any:
        """What needs no forward pass: `make(body, ...)` in a thread."""
        async with read_body(request, self.limits, self._bodies) as body:
            with self._places.of(1):
                return await self._thread(make, body, *args, self.strict)

    async def tokenize(self, request: Request, receive: Receive, send: Send) -> None:
        await send_json(send, 200, await self._small(request, texts.tokenize, self.models.current.model))

    async def detokenize(self, request: Request, receive: Receive, send: Send) -> None:
        await send_json(send, 200, await self._small(request, texts.detokenize, self.models.current.model))

    async def list_models(self, request: Request, receive: Receive, send: Send) -> None:
        loaded = self.models.any
        await send_json(send, 200, {"object": "list", "data": [] if loaded is None else [texts.model_card(loaded)]})

    async def show_model(self, request: Request, receive: Receive, send: Send) -> None:
        loaded, name = self.models.any, request.path_params["name"]
        if loaded is None or name != loaded.name:
            raise ApiError(404, "no such model is loaded", param="model", code="model_not_found")
        await send_json(send, 200, texts.model_card(loaded))

    async def health(self, request: Request, receive: Receive, send: Send) -> None:
        if not self.worker.alive:
            raise ApiError(503, "the thread that runs the model has died", code="worker_dead")
        await send_json(send, 200, {"status": "ok", "model_loaded": self.models.any is not None})

    async def show_metrics(self, request: Request, receive: Receive, send: Send) -> None:
        gauges = {
            "llava_ref_queue_length": ("Requests that wait", float(self.worker.waiting)),
            "llava_ref_busy": ("1 while a request is being answered", float(self.worker.busy)),
            "llava_ref_requests_active": (
                "Requests being read, prepared or answered, this one too",
                float(self.metrics.active),
            ),
            "llava_ref_model_loaded": ("1 if there is a model", float(self.models.any is not None)),
        }
        page = self.metrics.page(gauges).encode("ascii")
        await send_bytes(send, 200, page, "text/plain; version=0.0.4; charset=utf-8")

    async def load_model(self, request: Request, receive: Receive, send: Send) -> None:
        asked, warnings = await self._small(request, nitro.parse_load)
        change = asyncio.get_running_loop().run_in_executor(self._loader, nitro.load, self.models, asked)
        await asyncio.shield(change)
        answer = {"message": "Model loaded successfully", "code": "ModelloadedSuccessfully"}
        await send_json(send, 200, answer | texts.said(warnings))

    async def unload_model(self, request: Request, receive: Receive, send: Send) -> None:
        await self._thread(self.models.drop)
        await send_json(send, 200, {"message": "Model unloaded successfully"})

    async def model_status(self, request: Request, receive: Receive, send: Send) -> None:
        await send_json(send, 200, nitro.status(self.models.any))

    async def page(self, request: Request, receive: Receive, send: Send) -> None:
        await send_json(send, 200, await self._thread(about, self.models.any))

    async def openapi(self, request: Request, receive: Receive, send: Send) -> None:
        await send_json(send, 200, description())

    def routes(self) -> list[Route]:
        return [
            *(_route(path, self.chat, "POST") for path in CHAT),
            *(_route(path, self.completion, "POST") for path in ("/v1/completions", "/completions")),
            _route("/v1/look", self.look, "POST"),
            *(_route(path, self.list_models, "GET") for path in ("/v1/models", "/models")),
            *(_route(path, self.show_model, "GET") for path in ("/v1/models/{name}", "/models/{name}")),
            _route("/tokenize", self.tokenize, "POST"),
            _route("/detokenize", self.detokenize, "POST"),
            _route("/health", self.health, "GET"),
            _route("/healthz", self.health, "GET"),
            _route("/metrics", self.show_metrics, "GET"),
            *page_routes(),
            _route("/page.json", self.page, "GET"),
            _route("/openapi.json", self.openapi, "GET"),
            _route("/inferences/llamacpp/loadmodel", self.load_model, "POST"),
            _route("/inferences/llamacpp/unloadmodel", self.unload_model, "GET", "POST"),
            _route("/inferences/llamacpp/modelstatus", self.model_status, "GET", "POST"),
        ]

    def close(self) -> None:
        """After the last request."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._loader.shutdown(wait=False, cancel_futures=True)
        memory.collect()


def create_app(
    api: Api, *, api_key: str | None = None, origins: Iterable[str] = (), hosts: Iterable[str] | None = None
) -> ASGIApp:
    """The application. `origins` and `hosts` as `Visitors` has them."""
    routes = api.routes()
    names = dict.fromkeys(route.path for route in routes if route.path not in FILES)
    router = Router(routes, redirect_slashes=False)
    return Edge(router, api_key, api.metrics, Visitors(origins, hosts), ", ".join(names))


def _route(path: str, handle: Handle, *methods: str) -> Route:
    route = Route(path, _Endpoint(handle), methods=list(methods))
    if path in CHANGING and route.methods is not None:
        route.methods.discard("HEAD")  # which Starlette adds to GET, and which must change nothing
    return route


class _Endpoint:
    """A handler as an ASGI application, so that it sends its answer itself."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handle(Request(scope, receive), receive, send)
