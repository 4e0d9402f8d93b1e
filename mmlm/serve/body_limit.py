"""Bodies of requests that are too large are refused before they fill the memory."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware that answers 413.

    Args:
        app: what it guards.
        most: bytes that a body may have, whether its length is said beforehand or not.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        reason = f"a request may have at most {self.most} bytes"
        said = dict(scope["headers"]).get(b"content-length", b"0")
        announced, seen = int(said) if said.isdigit() else 0, 0

        async def counted() -> Message:
            nonlocal seen
            message: Message = {} if announced > self.most else await receive()
            seen += len(message.get("body", b""))
            if max(announced, seen) > self.most:
                raise HTTPException(413, reason)  # within the application, which makes an answer of it
            return message

        await self.app(scope, counted, send)
