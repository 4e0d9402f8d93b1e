"""The HTTP application: OpenAI's endpoints for pictures and conversations."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from mmlm.serve.body_limit import BodyLimit
from mmlm.serve.conversation import conversation
from mmlm.serve.engine import DrawingJob, Drawn, Engine, Event, Failed, Finished, Talk
from mmlm.serve.errors import RequestError, error_body
from mmlm.serve.pictures import data_address, png_base64, read_picture
from mmlm.serve.requests import Body, ChatRequest, ImageRequest

logger = logging.getLogger(__name__)
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", flags=re.ASCII)


def build_app(engine: Engine, name: str) -> FastAPI:
    """Return the application; it starts the engine when it starts, and closes it when it ends.

    Args:
        engine: not started yet.
        name: of the model, as clients call it.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(title="mmlm", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, most=engine.limits.body_bytes)
    created = int(time.time())

    @app.exception_handler(RequestError)
    async def refuse(_: HttpRequest, error: RequestError) -> JSONResponse:
        return JSONResponse(error_body(error.status, str(error), error.param, error.code), error.status)

    @app.exception_handler(RequestValidationError)
    async def refuse_body(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body") or None
        return JSONResponse(error_body(400, f"{param or 'body'}: {first['msg']}", param, first["type"]), 400)

    @app.exception_handler(HTTPException)
    async def refuse_path(_: HttpRequest, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code, error.headers)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Say whether requests are served."""
        state = {"status": "ok" if engine.is_alive else "stopped", "waiting": engine.waiting}
        return JSONResponse(state, 200 if engine.is_alive else 503)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the one model."""
        return {"object": "list", "data": [{"id": name, "object": "model", "created": created, "owned_by": "mmlm"}]}

    @app.post("/v1/images/generations")
    async def images(body: ImageRequest) -> dict[str, Any]:
        """Draw pictures of a prompt."""
        _check_model(body, name)
        drawing = _drawing(body, engine)
        async with _events(engine, drawing) as events:
            drawn = [event.image async for event in events if isinstance(event, Drawn)]
        encoded = await asyncio.to_thread(lambda: [png_base64(image) for image in drawn])
        return {"created": int(time.time()), "data": [{"b64_json": one} for one in encoded]}

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: HttpRequest) -> Response | dict[str, Any]:
        """Answer a conversation with text and pictures."""
        _check_model(body, name)
        talk = await asyncio.to_thread(_talk, body, engine)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        if body.stream:
            events = await _first_of(_events(engine, talk))
            return StreamingResponse(_chunks(events, head), media_type="text/event-stream")
        text, found = "", []
        ending = None
        async with _events(engine, talk) as answer:
            async for event in answer:
                if isinstance(event, str):
                    text += event
                elif isinstance(event, Drawn):
                    found.append(event.image)
                elif isinstance(event, Finished):
                    ending = event.ending
        assert ending is not None
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if found:
            message["images"] = [_image_part(image) for image in found]
        return {
            **head,
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": _reason(ending.has_ended)}],
            "usage": {
                "prompt_tokens": ending.prompt_tokens,
                "completion_tokens": ending.new_tokens,
                "total_tokens": ending.prompt_tokens + ending.new_tokens,
            },
        }

    return app


def _check_model(body: Body, name: str) -> None:
    if body.model not in (None, name):
        raise RequestError(
            f"this server has the model {name!r}, not {body.model!r}", status=404, param="model", code="model_not_found"
        )


def _drawing(body: ImageRequest, engine: Engine) -> DrawingJob:
    limits, processor = engine.limits, engine.processor
    if body.n > limits.images_per_request:
        raise RequestError(f"n may be at most {limits.images_per_request}, got {body.n}", param="n")
    if len(body.prompt) + len(body.negative_prompt or "") > limits.prompt_characters:
        raise RequestError(f"a request may have at most {limits.prompt_characters} characters", param="prompt")
    if len(body.images) > limits.prompt_images:
        raise RequestError(f"a request may bring at most {limits.prompt_images} pictures", param="images")
    given = [read_picture(address, limits, f"images.{number}") for number, address in enumerate(body.images)]
    sampling = body.sampling(processor.sampling)
    grid = None
    if body.size != "auto":
        match = SIZE.fullmatch(body.size)
        width, height = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 0 < width * height <= limits.image_pixels:
            raise RequestError(
                f"size must be 'auto' or WIDTHxHEIGHT of at most {limits.image_pixels} pixels, got {body.size!r}",
                param="size",
            )
        try:
            assert processor.codec is not None
            grid = tuple(processor.codec.token_grid(height, width, 0))
            processor.layout.template(grid)
            grid = None if processor.codec.has_variable_length else grid  # it has one size, and any number of tokens
        except ValueError as error:
            raise RequestError(f"this model cannot draw {body.size}: {error}", param="size") from error
    prompt = [*given, body.prompt] if given else body.prompt
    return DrawingJob(emit=_nowhere, prompt=prompt, count=body.n, seed=body.seed, grid=grid, sampling=sampling)


def _talk(body: ChatRequest, engine: Engine) -> Talk:
    limits = engine.limits
    tokens = body.max_completion_tokens or body.max_tokens or limits.new_tokens
    if tokens > limits.new_tokens:
        raise RequestError(f"max_tokens may be at most {limits.new_tokens}, got {tokens}", param="max_tokens")
    images = limits.images_per_request if body.max_images is None else body.max_images
    if images > limits.images_per_request:
        raise RequestError(f"max_images may be at most {limits.images_per_request}, got {images}", param="max_images")
    settings = {
        **body.settings(),
        "max_new_tokens": tokens,
        "max_images": images,
        "open_image": body.open_image,
        "seed": body.seed,
        "end_turn": not getattr(engine.processor.tokenizer, "chat_template", None),
    }
    return Talk(emit=_nowhere, prompt=conversation(body, engine.processor, limits), settings=settings)


def _nowhere(_: Event) -> None:
    """Stand in until somebody listens."""


@contextlib.asynccontextmanager
async def _events(engine: Engine, request: DrawingJob | Talk) -> AsyncIterator[AsyncIterator[Event]]:
    """Submit a request and hand over its events; whoever leaves early cancels it.

    Raises:
        RequestError: it was refused, or what was asked for cannot be.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Event] = asyncio.Queue()

    def emit(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it whoever waited
            loop.call_soon_threadsafe(queue.put_nowait, event)

    async def read() -> AsyncIterator[Event]:
        while True:
            event = await queue.get()
            if isinstance(event, Failed):
                raise _as_request_error(event.error)
            yield event
            if isinstance(event, Finished):
                return

    request.emit = emit
    engine.submit(request)
    try:
        yield read()
    finally:
        request.cancelled.set()


def _as_request_error(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ValueError):
        return RequestError(" ".join(str(error).split()))
    return RequestError("the model failed; the server's log says why", status=500, code="internal_error")


async def _first_of(context: contextlib.AbstractAsyncContextManager[AsyncIterator[Event]]) -> AsyncIterator[Event]:
    """Wait for the first event, so that what is wrong with a request is an HTTP status, then return all of them."""
    events = await context.__aenter__()
    try:
        first = await anext(events)
    except BaseException as error:
        await context.__aexit__(type(error), error, error.__traceback__)
        raise

    async def all_of_them() -> AsyncIterator[Event]:
        try:
            yield first
            if not isinstance(first, Finished):
                async for event in events:
                    yield event
        finally:
            await context.__aexit__(None, None, None)

    return all_of_them()


async def _chunks(events: AsyncIterator[Event], head: dict[str, Any]) -> AsyncIterator[str]:
    """Yield the server-sent events of an answer."""

    def line(delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

    yield line({"role": "assistant", "content": ""})
    try:
        async with contextlib.aclosing(events) as pieces:  # type: ignore[type-var]
            async for event in pieces:
                if isinstance(event, str):
                    yield line({"content": event})
                elif isinstance(event, Drawn):
                    yield line({"images": [await asyncio.to_thread(_image_part, event.image)]})
                elif isinstance(event, Finished):
                    assert event.ending is not None
                    yield line({}, _reason(event.ending.has_ended))
    except RequestError as error:
        yield f"data: {json.dumps(error_body(error.status, str(error), error.param, error.code))}\n\n"
    yield "data: [DONE]\n\n"


def _image_part(image: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_address(image)}}


def _reason(has_ended: bool) -> str:
    return "stop" if has_ended else "length"
