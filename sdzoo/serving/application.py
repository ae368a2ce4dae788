"""The server as an ASGI application: routes, who may come in, and what is recorded of each request."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

from sdzoo.serving.batching import Answer
from sdzoo.serving.http import Bodies, DisconnectedError, Receive, Response, Scope, Send, timeout
from sdzoo.serving.image import decode_image
from sdzoo.serving.model import Model, Models
from sdzoo.serving.protocol import LENGTH, decode, encode, model_metadata, server_metadata
from sdzoo.serving.record import Metrics, Record, RequestLog
from sdzoo.serving.settings import Settings, Token
from sdzoo.serving.signature import ProtocolError

MODEL = r"/v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?"
OPEN = {"", "/", "/v2/health/live", "/v2/health/ready"}  # no token: probes carry none, and the page is public
HEADER = LENGTH.lower().encode()
MEMORY = 512 * 2**20  # bytes that bodies may take while they arrive
GONE = 499  # the client hung up: nothing is sent, but it is counted

log = logging.getLogger("ray.serve")

Headers = dict[bytes, bytes]


class Request:
    """One request on its way: what came, and what will be recorded of it."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        self.headers: Headers = dict(scope["headers"])
        self.receive = receive
        self.record = Record(request=self.headers.get(b"x-request-id", b"").decode("latin-1"))
        self.model: Model


Handler = Callable[["Application", Request], Awaitable[Response]]


class Application:
    """The routes over the models of one replica."""

    def __init__(self, models: Models, settings: Settings, token: Token, requests: RequestLog) -> None:
        self.models, self.settings, self.limits, self.token = models, settings, settings.limits, token
        self.requests = requests
        self.metrics = Metrics()
        self._ended: list[Record] = []  # requests that are not recorded yet
        self._bodies = Bodies(self.limits.max_bytes, settings.timeout_s, MEMORY)
        self._page = files("sdzoo.serving").joinpath("page.html").read_bytes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request, as ASGI says."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(Request(scope, receive), send)
        else:
            await send({"type": "websocket.close"})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        recording = asyncio.create_task(self._record_each_second())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        recording.cancel()
        self._record(self._take_ended())
        await send({"type": "lifespan.shutdown.complete"})

    async def _record_each_second(self) -> None:
        while True:
            await asyncio.sleep(1)
            await asyncio.to_thread(self._record, self._take_ended())

    def _take_ended(self) -> list[Record]:
        """Return the requests that are not recorded yet; in the event loop, like what adds to them."""
        ended, self._ended = self._ended, []
        return ended

    def _record(self, ended: list[Record]) -> None:
        try:
            self.metrics.count(ended)
            self.requests.write(ended)
        except Exception:  # a full disk, or Ray's exporter: no reason to stop serving
            log.exception("requests cannot be recorded")

    async def _serve(self, request: Request, send: Send) -> None:
        record, began = request.record, time.perf_counter()
        record.status = GONE  # what it is if the client goes before the end
        try:
            response = await self._answer(request)
            record.status = response.status
            await response.send(send)
        except DisconnectedError:
            pass
        finally:
            record.milliseconds = (time.perf_counter() - began) * 1e3
            record.ended = time.time()
            self._ended.append(record)

    async def _answer(self, request: Request) -> Response:
        try:
            if request.path not in OPEN and not self.token.admits(request.headers.get(b"authorization", b"")):
                raise ProtocolError("the header Authorization must be Bearer and the server's token", 401)
            return await self._route(request)
        except ProtocolError as error:
            request.record.error = str(error)
            return Response.error(str(error), error.status)
        except DisconnectedError:
            raise
        except Exception as error:
            log.exception("not answered: %s", request.path)
            request.record.error = f"{type(error).__name__}: {error}"
            return Response.error("the server failed at this request; its log says why", 500)

    async def _route(self, request: Request) -> Response:
        allowed = []
        for method, pattern, handler in ROUTES:
            if not (match := pattern.fullmatch(request.path)):
                continue
            allowed.append(method)
            if method == ("GET" if request.method == "HEAD" else request.method):
                self._find(request, match)
                return await handler(self, request)
        if allowed:
            return Response.error(f"{request.method} is not for this path", 405, {"Allow": ", ".join(allowed)})
        raise ProtocolError("there is nothing under this path", 404)

    def _find(self, request: Request, match: "re.Match[str]") -> None:
        if "model" in match.re.groupindex:
            model = request.model = self.models.find(match["model"], match["version"])
            request.record.model, request.record.version = model.source.name, model.source.version

    async def page(self, request: Request) -> Response:
        """Answer with the page to try a model on."""
        return Response(self._page, headers={"Content-Type": "text/html; charset=utf-8"})

    async def server(self, request: Request) -> Response:
        """Answer with the server's metadata."""
        return Response(server_metadata())

    async def live(self, request: Request) -> Response:
        """Answer that the server lives."""
        return Response(b'{"live":true}')

    async def ready(self, request: Request) -> Response:
        """Answer that all models are loaded: a replica takes no request before."""
        return Response(b'{"ready":true}')

    async def model_ready(self, request: Request) -> Response:
        """Answer that this model is loaded."""
        name = json.dumps(request.record.model)
        return Response(f'{{"name":{name},"ready":true}}'.encode())

    async def list_models(self, request: Request) -> Response:
        """Answer with names and versions of all models."""
        return Response(json.dumps({"models": self.models.listed()}).encode())

    async def metadata(self, request: Request) -> Response:
        """Answer with the model's metadata."""
        return Response(model_metadata(request.model.signature))

    async def infer(self, request: Request) -> Response:
        """Answer an inference request of the protocol."""
        model = request.model
        body = await self._body(request)
        header = request.headers.get(HEADER)
        length = None if header is None else header.decode("latin-1")
        asked = decode(body, length, model.signature, self.limits)
        answer = await self._run(request, asked.inputs)
        body, headers = encode(model.signature, model.source.version, asked, answer.outputs)
        return Response(body, headers=headers)

    async def classify(self, request: Request) -> Response:
        """Answer with the labels of a picture, whose file is the body."""
        model, classifier = request.model, request.model.pictures()
        body = await self._body(request)
        pixels = await asyncio.to_thread(decode_image, body, classifier)
        answer = await self._run(request, {"images": classifier.images(pixels)})
        (prediction, *_) = classifier.predictions(answer.outputs["logits"])
        facts: dict[str, Any] = {"model_name": model.source.name, "model_version": model.source.version}
        facts |= {"label": prediction.label, "probabilities": prediction.probabilities}
        return Response(json.dumps(facts).encode())

    async def _body(self, request: Request) -> bytes:
        request.model.batcher.check_room()  # before a byte is read
        return await self._bodies.read(request.headers, request.receive)

    async def _run(self, request: Request, inputs: dict[str, Any]) -> Answer:
        batcher, seconds = request.model.batcher, self.settings.timeout_s
        try:
            async with timeout(seconds):
                answer = await batcher(inputs)
        except asyncio.TimeoutError:
            raise ProtocolError(f"no answer within {seconds:g} s: try again", 503) from None
        request.record.batch, request.record.waiting = answer.batch, batcher.waiting
        return answer


ROUTES: tuple[tuple[str, "re.Pattern[str]", Handler], ...] = tuple(
    (method, re.compile(path), handler)
    for method, path, handler in (
        ("POST", f"{MODEL}/infer", Application.infer),
        ("POST", f"{MODEL}/classify", Application.classify),
        ("GET", "/v2/health/live", Application.live),
        ("GET", "/v2/health/ready", Application.ready),
        ("GET", "/v2/?", Application.server),
        ("GET", "/v2/models", Application.list_models),
        ("GET", MODEL, Application.metadata),
        ("GET", f"{MODEL}/ready", Application.model_ready),
        ("GET", "/?", Application.page),
    )
)
