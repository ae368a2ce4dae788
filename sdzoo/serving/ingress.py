"""What takes the connections: Ray's own proxy, or HAProxy in front of the replicas; set before Ray is imported."""

import atexit
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from sdzoo.errors import InputError

DRAINING_S = 3  # a replica that is replaced stays reachable so long, until HAProxy knows
CLIENT_S = 60  # a client that sends nothing for so long is cut off

# Ray reads them when it is imported, and hands them down to its own processes.
BOTH = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # on a busy machine Ray's 5 end in starting it again and again
}


def _proxy(folder: Path) -> dict[str, str]:
    return {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}


def _haproxy(folder: Path) -> dict[str, str]:
    paths = {
        "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    }
    return {
        **PORTS,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, min(4, (os.cpu_count() or 1) // 2))),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # the replicas then keep Ray's figures of requests, at less cost
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(CLIENT_S),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAINING_S),
        **{name: str(folder / file) for name, file in paths.items()},
    }


# what listens with HAProxy besides our own port; the fallback takes requests while there is no replica
PORTS = {
    "RAY_SERVE_HAPROXY_METRICS_PORT": "9101",
    "RAY_SERVE_HAPROXY_STATS_PORT": "8404",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": "8500",
}

INGRESSES: dict[str, Callable[[Path], Mapping[str, str]]] = {"proxy": _proxy, "haproxy": _haproxy}


def check_free(host: str, port: int, advice: str = "") -> None:
    """Raise InputError where nobody can listen on a port."""
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host}:{port}: {error}{advice}") from error


def prepare(ingress: str) -> None:
    """Set the environment for an ingress, except what the user has set; HAProxy's files go into a folder of ours.

    Raises:
        InputError: There is no such ingress, or a port that HAProxy needs for itself is taken.
    """
    if ingress not in INGRESSES:
        raise InputError(f"ingress is {ingress!r}, must be one of {', '.join(INGRESSES)}")
    folder = Path(tempfile.mkdtemp(prefix="sdzoo-"))  # mode 700: HAProxy's admin socket is open to all who reach it
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # Ray's own ports obey nobody else
    for name, value in {**BOTH, **secret, **INGRESSES[ingress](folder)}.items():
        os.environ.setdefault(name, value)
    if ingress == "haproxy":
        for name in PORTS:
            check_free("0.0.0.0", int(os.environ[name]), f"; set {name} to a free one")
