"""One thread that owns the model; requests wait for it in a queue, and what fits together is drawn in one batch."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from mmlm.generation.images import generate_indices
from mmlm.generation.interleaved import Ending, generate_interleaved
from mmlm.generation.loop import evaluation_mode
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.sampling import PictureSampling
from mmlm.serve.errors import RequestError
from mmlm.serve.limits import Limits

logger = logging.getLogger(__name__)


class Rows(NamedTuple):
    """A picture of which some rows are there."""

    image: Image.Image
    rows_done: int
    number: int


class Drawn(NamedTuple):
    """A picture that is done."""

    image: Image.Image
    indices: Tensor | None
    """Its visual indices, of `DrawingJob`s."""


class Failed(NamedTuple):
    """The request's end."""

    error: Exception


class Finished(NamedTuple):
    """The request's end."""

    ending: Ending | None
    """Of `Talk`s."""


Event = Rows | Drawn | Failed | Finished | str
"""What a request gets, in order; a `str` is text; the last one is `Failed` or `Finished`."""


@dataclass(kw_only=True, eq=False)
class Request:
    """Something for the model to do."""

    emit: Callable[[Any], None]
    """Called with each event, in the model's thread."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set it when nobody waits any more."""


@dataclass(kw_only=True, eq=False)
class DrawingJob(Request):
    """Pictures of one prompt."""

    prompt: Any
    """As an element of `generate_images`' prompts."""
    count: int = 1
    seed: int = 0
    grid: tuple[int, ...] | None = None
    sampling: PictureSampling
    wants_rows: bool = False
    """Whether `Rows` are sent."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Drawings of equal keys can share a batch."""
        return self.grid, self.sampling


@dataclass(kw_only=True, eq=False)
class Talk(Request):
    """An answer of text and pictures."""

    prompt: list[Any]
    settings: dict[str, Any]
    """Arguments of `generate_interleaved`."""


class Engine:
    """Serves requests one batch after the other until it is closed.

    Args:
        processor: with its visual tokenizer.
        limits: what a request may ask for.
    """

    def __init__(self, model: PreTrainedModel, processor: MultimodalProcessor, limits: Limits) -> None:
        processor.check_model(model)
        self.model, self.processor, self.limits = model, processor, limits
        self._waiting: deque[DrawingJob | Talk] = deque()
        self._changed = threading.Condition()
        self._is_open = True
        self._thread = threading.Thread(target=self._work, name="mmlm-engine", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are served."""
        return self._is_open and self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Number of requests that have not begun."""
        return len(self._waiting)

    def submit(self, request: DrawingJob | Talk) -> None:
        """Queue a request; RequestError where the queue is full (429), or the server shuts down (503)."""
        with self._changed:
            if not self._is_open:
                raise RequestError("the server is shutting down", status=503, code="shutting_down")
            if len(self._waiting) >= self.limits.waiting_requests:
                raise RequestError("too many requests are waiting: try again later", status=429, code="queue_full")
            self._waiting.append(request)
            self._changed.notify()

    def close(self, timeout: float | None = None) -> None:
        """End what is being drawn, refuse what waits, and stop."""
        with self._changed:
            self._is_open = False
            refused = list(self._waiting)
            self._waiting.clear()
            self._changed.notify()
        for request in refused:
            request.emit(Failed(RequestError("the server is shutting down", status=503, code="shutting_down")))
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _next(self) -> list[DrawingJob | Talk]:
        """Wait for the next request and return it with all that can share its batch; nothing when it is closed."""
        with self._changed:
            while self._is_open and not self._waiting:
                self._changed.wait()
            if not self._waiting:
                return []
            first = self._waiting.popleft()
            batch: list[DrawingJob | Talk] = [first]
            if isinstance(first, DrawingJob):
                pictures = first.count
                for other in list(self._waiting):
                    if isinstance(other, DrawingJob) and other.key == first.key:
                        if pictures + other.count > self.limits.batch_size:
                            break
                        batch.append(other)
                        self._waiting.remove(other)
                        pictures += other.count
            return batch

    def _work(self) -> None:
        while batch := self._next():
            batch = [request for request in batch if not request.cancelled.is_set()]
            if not self._try(batch) and len(batch) > 1:
                for request in batch:  # one of them may be to blame
                    self._try([request])

    def _try(self, batch: list[DrawingJob | Talk]) -> bool:
        """Serve a batch and return whether it went well; a request that is alone is told of its error."""
        try:
            drawings = [request for request in batch if isinstance(request, DrawingJob)]
            if drawings:
                self._draw(drawings)
            for request in batch:
                if isinstance(request, Talk):
                    self._talk(request)
        except Exception as error:
            if not isinstance(error, ValueError):
                logger.exception("a request failed")
            if len(batch) == 1:
                batch[0].emit(Failed(error))
            return False
        return True

    def _draw(self, requests: list[DrawingJob]) -> None:
        owners = [request for request in requests for _ in range(request.count)]
        firsts = {id(request): owners.index(request) for request in requests}

        def on_rows(image: Image.Image, rows_done: int, number: int) -> None:
            owner = owners[number]
            if owner.wants_rows:
                owner.emit(Rows(image, rows_done, number - firsts[id(owner)]))

        codec = self.processor.codec
        with evaluation_mode(*([] if codec is None else [codec])):
            indices = generate_indices(
                self.model,
                self.processor,
                [request.prompt for request in owners],
                requests[0].sampling,
                seed=[request.seed for request in owners],
                batch_size=self.limits.batch_size,
                grid=requests[0].grid,
                on_rows=on_rows if any(request.wants_rows for request in requests) else None,
            ).cpu()
            images = self.processor.decode_indices(indices)
        for owner, image, own in zip(owners, images, indices, strict=True):
            owner.emit(Drawn(image, own))
        for request in requests:
            request.emit(Finished(None))

    def _talk(self, request: Talk) -> None:
        pieces: Generator[Any, None, Ending] = generate_interleaved(
            self.model, self.processor, request.prompt, **request.settings
        )
        while not request.cancelled.is_set():
            try:
                piece = next(pieces)
            except StopIteration as stop:
                request.emit(Finished(stop.value))
                return
            request.emit(piece if isinstance(piece, str) else Drawn(piece, None))
        pieces.close()
