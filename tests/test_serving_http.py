"""Bodies are read within limits of size, time and memory; what is wrong is refused before it is held."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from sdzoo.serving.http import Bodies, DisconnectedError
from sdzoo.serving.signature import ProtocolError

Receive = Callable[[], Awaitable[dict[str, Any]]]


def sending(*parts: bytes, ended: bool = True, paused: "asyncio.Event | None" = None) -> Receive:
    """Return an ASGI ``receive`` that gives the parts, after a pause for the second, then the end or nothing more."""
    left = list(parts)

    async def receive() -> dict[str, Any]:
        if paused is not None and len(left) < len(parts):
            await paused.wait()
        if not left:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or not ended}

    return receive


def run(steps: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(steps, 30))


def refusal(bodies: Bodies, receive: Receive, headers: dict[bytes, bytes] | None = None) -> ProtocolError:
    with pytest.raises(ProtocolError) as refused:
        asyncio.run(bodies.read(headers or {}, receive))
    return refused.value


def test_parts_become_one_body() -> None:
    async def steps() -> None:
        bodies = Bodies(10, 5, 100)
        assert await bodies.read({}, sending(b"")) == b""
        assert await bodies.read({}, sending(b"abc", b"", b"defghij")) == b"abcdefghij"

    run(steps())


def test_too_large_by_its_length_or_by_its_bytes() -> None:
    bodies = Bodies(10, 5, 100)
    declared = refusal(bodies, sending(ended=False), {b"content-length": b"11"})  # nothing is read
    counted = refusal(bodies, sending(b"12345", b"123456", ended=False))
    assert declared.status == counted.status == 413
    assert str(declared) == str(counted) == "the body has 11 bytes or more, must have at most 10"


def test_too_slow() -> None:
    async def steps() -> None:
        with pytest.raises(ProtocolError, match=r"longer than 0\.05 s") as refused:
            await Bodies(10, 0.05, 100).read({}, sending(b"a", b"b", paused=asyncio.Event()))
        assert refused.value.status == 408

    run(steps())


def test_compressed() -> None:
    assert refusal(Bodies(10, 5, 100), sending(b"a"), {b"content-encoding": b"gzip"}).status == 415


def test_a_client_that_hangs_up() -> None:
    with pytest.raises(DisconnectedError):
        asyncio.run(Bodies(10, 5, 100).read({}, sending(b"a", ended=False)))


def test_all_bodies_together_have_a_limit_and_free_what_they_held() -> None:
    async def steps() -> None:
        bodies, paused = Bodies(10, 5, 15), asyncio.Event()
        first = asyncio.create_task(bodies.read({}, sending(b"123456789", b"0", paused=paused)))
        await asyncio.sleep(0)
        with pytest.raises(ProtocolError, match="16 bytes are under way already") as refused:
            await bodies.read({}, sending(b"1234567"))
        assert refused.value.status == 503
        assert await bodies.read({}, sending(b"123456")) == b"123456"
        paused.set()
        assert await first == b"1234567890"
        assert await bodies.read({}, sending(b"1234567890")) == b"1234567890"

    run(steps())
