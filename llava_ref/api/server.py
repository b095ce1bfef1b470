"""The ASGI application: its routes and their handlers, which pass requests through the queue to the model."""

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
from .conversations import apply_template
from .docs import PLACE, docs
from .edge import Edge
from .errors import ApiError
from .limits import MAX_BODIES, MAX_HELD_PIXELS, Allowance, Limits
from .look import prepare_look
from .metrics import Metrics
from .models import Models
from .openapi import CHAT_PATHS, description
from .page import FILES, page_info, page_routes
from .prepare import Prepared
from .respond import PING, EventForm, send_bytes, send_events, send_json, send_result
from .responses import count_input, prepare_response
from .visitors import STATE_CHANGING_PATHS, AccessRules
from .worker import ModelJob, Worker

log = logging.getLogger("llava_ref.server")
T = TypeVar("T")
Handle = Callable[[Request, Receive, Send], Awaitable[None]]


class Api:
    """The state of one server, and a handler for each route."""

    def __init__(
        self, models: Models, worker: Worker, limits: Limits, fetch: Fetch | None = None, *, strict: bool = False
    ) -> None:
        self.models, self.worker, self.limits, self.fetch = models, worker, limits, fetch
        self.strict = strict
        """Whether a parameter that has no effect is refused instead of warned of."""
        self.metrics = Metrics()
        self._body_bytes = Allowance(MAX_BODIES, "too many large requests at once")
        self._pixels = Allowance(MAX_HELD_PIXELS, "too many large pictures at once")
        self._queue_places = Allowance(limits.max_queue, f"{limits.max_queue} requests are waiting already")
        self._threads = ThreadPoolExecutor(4, "prepare")
        self._loader = ThreadPoolExecutor(2, "load")  # while one thread loads, the other refuses a second load

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def chat(self, request: Request, receive: Receive, send: Send) -> None:
        loaded = self.models.current
        await self._with_model(request, receive, send, prepare.chat, loaded, self.limits, self._pixels, self.fetch)

    async def completion(self, request: Request, receive: Receive, send: Send) -> None:
        await self._with_model(request, receive, send, prepare.completion, self.models.current)

    async def response(self, request: Request, receive: Receive, send: Send) -> None:
        loaded = self.models.current
        await self._with_model(request, receive, send, prepare_response, loaded, self.limits, self._pixels, self.fetch)

    async def input_tokens(self, request: Request, receive: Receive, send: Send) -> None:
        args = (self.models.current, self.limits, self._pixels, self.fetch)
        await send_json(send, 200, await self._without_model(request, count_input, *args))

    async def look(self, request: Request, receive: Receive, send: Send) -> None:
        await self._with_model(
            request, receive, send, prepare_look, self.models.current, self.limits, self._pixels, self.fetch
        )

    async def _with_model(
        self, request: Request, receive: Receive, send: Send, prepare_request: Callable[..., Prepared], *args: Any
    ) -> None:
        """Prepare a request in a thread, queue it for the model, and send its answer."""
        with ExitStack() as stack:
            async with read_body(request, self.limits, self._body_bytes) as body:
                place = stack.enter_context(self._queue_places.share(1, self.models.together))
                prepared = await self._in_thread(prepare_request, body, *args, self.strict)
            del body
            pixels = prepared.pixels
            try:
                job = ModelJob(prepared.model, prepared.work, place.give_back, prepared.progress)
                await self._answer(job, prepared.events if prepared.stream else None, request, receive, send)
            finally:
                self._pixels.give_back(pixels)
                self.metrics.answered(prepared.streams)
        del job, prepared
        if pixels > LARGE:
            await self._in_thread(memory.give_back)

    async def _answer(
        self, job: ModelJob, events: EventForm | None, request: Request, receive: Receive, send: Send
    ) -> None:
        self.worker.submit(job)
        if events is not None:
            request.scope.setdefault("state", {})["probe"] = PING
            await send_events(job, events, self.worker, self.limits, receive, send)
        else:
            await send_result(job, self.worker, receive, send)

    async def _without_model(self, request: Request, function: Callable[..., Any], *args: Any) -> Any:
        """Read the body of a request that needs no forward pass; returns `function(body, ...)`, run in a thread."""
        async with read_body(request, self.limits, self._body_bytes) as body:
            with self._queue_places.share(1, self.models.together):
                return await self._in_thread(function, body, *args, self.strict)

    async def tokenize(self, request: Request, receive: Receive, send: Send) -> None:
        await send_json(send, 200, await self._without_model(request, texts.tokenize, self.models.current.model))

    async def detokenize(self, request: Request, receive: Receive, send: Send) -> None:
        await send_json(send, 200, await self._without_model(request, texts.detokenize, self.models.current.model))

    async def apply_template(self, request: Request, receive: Receive, send: Send) -> None:
        args = (apply_template, self.models.current, self.fetch)
        await send_json(send, 200, await self._without_model(request, *args))

    async def tokenizer_info(self, request: Request, receive: Receive, send: Send) -> None:
        await send_json(send, 200, texts.tokenizer_info(self.models.current.model))

    async def list_models(self, request: Request, receive: Receive, send: Send) -> None:
        await send_json(send, 200, texts.model_list(self.models.current_or_none))

    async def show_model(self, request: Request, receive: Receive, send: Send) -> None:
        loaded, name = self.models.current_or_none, request.path_params["name"]
        if loaded is None or name != loaded.name:
            raise ApiError(404, "no such model is loaded", param="model", code="model_not_found")
        await send_json(send, 200, texts.model_card(loaded))

    async def health(self, request: Request, receive: Receive, send: Send) -> None:
        if not self.worker.alive:
            raise ApiError(503, "the thread that runs the model has died", code="worker_dead")
        await send_json(send, 200, {"status": "ok", "model_loaded": self.models.current_or_none is not None})

    async def show_metrics(self, request: Request, receive: Receive, send: Send) -> None:
        gauges = {
            "llava_ref_queue_length": ("Requests that wait for the model", float(self.worker.waiting)),
            "llava_ref_busy": ("1 while a request is being answered", float(self.worker.busy)),
            "llava_ref_requests_running": (
                "Requests that the model answers at once, their tokens in one step",
                float(self.worker.running),
            ),
            "llava_ref_requests_active": (
                "Requests being read, prepared or answered, including this one",
                float(self.metrics.active),
            ),
            "llava_ref_model_loaded": ("1 if a model is loaded", float(self.models.current_or_none is not None)),
        }
        page = self.metrics.page(gauges).encode("ascii")
        await send_bytes(send, 200, page, "text/plain; version=0.0.4; charset=utf-8")

    async def load_model(self, request: Request, receive: Receive, send: Send) -> None:
        params, warnings = await self._without_model(request, nitro.parse_load)
        change = asyncio.get_running_loop().run_in_executor(self._loader, nitro.load, self.models, params)
        await asyncio.shield(change)
        answer = {"message": "Model loaded successfully", "code": "ModelloadedSuccessfully"}
        await send_json(send, 200, answer | texts.warnings_field(warnings))

    async def unload_model(self, request: Request, receive: Receive, send: Send) -> None:
        await self._in_thread(self.models.drop)
        await send_json(send, 200, {"message": "Model unloaded successfully"})

    async def model_status(self, request: Request, receive: Receive, send: Send) -> None:
        await send_json(send, 200, nitro.status(self.models.current_or_none))

    async def page(self, request: Request, receive: Receive, send: Send) -> None:
        await send_json(send, 200, await self._in_thread(page_info, self.models.current_or_none, self.limits))

    async def openapi(self, request: Request, receive: Receive, send: Send) -> None:
        await send_json(send, 200, description())

    def routes(self) -> list[Route]:
        return [
            *(_route(path, self.chat, "POST") for path in CHAT_PATHS),
            *(_route(path, self.completion, "POST") for path in ("/v1/completions", "/completions")),
            _route("/v1/responses", self.response, "POST"),
            _route("/v1/responses/input_tokens", self.input_tokens, "POST"),
            _route("/v1/look", self.look, "POST"),
            *(_route(path, self.list_models, "GET") for path in ("/v1/models", "/models")),
            *(_route(path, self.show_model, "GET") for path in ("/v1/models/{name}", "/models/{name}")),
            _route("/tokenize", self.tokenize, "POST"),
            _route("/detokenize", self.detokenize, "POST"),
            _route("/apply-template", self.apply_template, "POST"),
            _route("/tokenizer_info", self.tokenizer_info, "GET"),
            _route("/health", self.health, "GET"),
            _route("/healthz", self.health, "GET"),
            _route("/metrics", self.show_metrics, "GET"),
            *page_routes(),
            _route(PLACE + "{name}", docs, "GET"),
            _route("/page.json", self.page, "GET"),
            _route("/openapi.json", self.openapi, "GET"),
            _route("/inferences/llamacpp/loadmodel", self.load_model, "POST"),
            _route("/inferences/llamacpp/unloadmodel", self.unload_model, "GET", "POST"),
            _route("/inferences/llamacpp/modelstatus", self.model_status, "GET", "POST"),
        ]

    def close(self) -> None:
        """Free threads and memory; called after the last request."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._loader.shutdown(wait=False, cancel_futures=True)
        memory.collect()


def create_app(
    api: Api, *, api_key: str | None = None, origins: Iterable[str] = (), hosts: Iterable[str] | None = None
) -> ASGIApp:
    """Build the application. `origins`, `hosts`: see `AccessRules`."""
    routes = api.routes()
    names = dict.fromkeys(route.path for route in routes if route.path not in FILES)
    router = Router(routes, redirect_slashes=False)
    return Edge(router, api_key, api.metrics, AccessRules(origins, hosts), ", ".join(names))


def _route(path: str, handle: Handle, *methods: str) -> Route:
    route = Route(path, _Endpoint(handle), methods=list(methods))
    if path in STATE_CHANGING_PATHS and route.methods is not None:
        route.methods.discard("HEAD")  # Starlette adds HEAD to GET, but HEAD must not change anything
    return route


class _Endpoint:
    """Wraps a handler as an ASGI application, so that it sends its answer itself."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handle(Request(scope, receive), receive, send)
