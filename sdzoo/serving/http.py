"""The little of HTTP that the server needs: reading a body within limits, sending an answer."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from sdzoo.serving.protocol import error_body
from sdzoo.serving.signature import ProtocolError

if sys.version_info >= (3, 11):
    from asyncio import timeout as timeout
else:
    from async_timeout import timeout as timeout  # aiohttp brings it, and Ray aiohttp

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = {"Content-Type": "application/json"}
# what an error's status needs besides its body
HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    408: {"Connection": "close"},  # the rest of the request may come at any time
    503: {"Retry-After": "1"},
}


class DisconnectedError(Exception):
    """The client has gone."""


@dataclass(frozen=True)
class Response:
    """An answer: body, status, headers."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: JSON)

    @classmethod
    def error(cls, message: str, status: int, headers: dict[str, str] | None = None) -> "Response":
        """Return an error in the protocol's form."""
        return cls(error_body(message), status, {**JSON, **HEADERS.get(status, {}), **(headers or {})})

    async def send(self, send: Send) -> None:
        """Send it."""
        pairs = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        pairs.append((b"content-length", str(len(self.body)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": pairs})
        await send({"type": "http.response.body", "body": self.body})


class Bodies:
    """Reads the bodies of requests.

    Args:
        limit: Bytes of one body.
        seconds: Until it must be there.
        memory: Bytes of all bodies that are being read.
    """

    def __init__(self, limit: int, seconds: float, memory: int) -> None:
        self.limit, self.seconds, self.memory = limit, seconds, max(memory, limit)
        self._held = 0

    async def read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """Read a whole body.

        Raises:
            ProtocolError: It is larger than the limit (status 413), takes longer than the time (408), is compressed
                (415), or all bodies together are too large (503).
            DisconnectedError: The client hung up.
        """
        encoding = headers.get(b"content-encoding", b"identity")
        if encoding != b"identity":
            raise ProtocolError(f"the body's Content-Encoding is {encoding.decode('latin-1')!r}, must be identity", 415)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limit:
            raise self._too_large(int(length))
        try:
            async with timeout(self.seconds):
                return await self._read(receive)
        except asyncio.TimeoutError:
            raise ProtocolError(f"the body took longer than {self.seconds:g} s", 408) from None

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise DisconnectedError
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                self._held += len(parts[-1])
                if size > self.limit:
                    raise self._too_large(size)
                if self._held > self.memory:
                    raise ProtocolError(f"requests of {self._held} bytes are under way already: try again", 503)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            self._held -= size

    def _too_large(self, size: int) -> ProtocolError:
        return ProtocolError(f"the body has {size} bytes or more, must have at most {self.limit}", 413)
