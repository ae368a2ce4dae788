"""Ports for servers that tests start."""

import random
import socket
from contextlib import suppress


def free_port() -> int:
    """Return a port that nobody holds, from between Ray's workers' ports and those that Linux hands out by itself."""
    for port in random.sample(range(20_000, 32_000), 100):
        with suppress(OSError), socket.create_server(("0.0.0.0", port)):
            return port
    raise OSError("no free port")
