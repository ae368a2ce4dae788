"""Two Ray nodes on this machine, one killed under load: `python ray_two_nodes.py MODEL.onnx INGRESS` prints figures.

A process of its own, because Ray reads its environment when it is imported.
"""

import http.client
import json
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from ports import free_port
from served import binary_request

from sdzoo.serving.ingress import prepare

prepare(sys.argv[2])

import ray  # noqa: E402
from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from sdzoo.serving import app  # noqa: E402
from sdzoo.serving.settings import Settings  # noqa: E402

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}  # room for one replica, so that two need two nodes
CLIENTS, SECONDS, PATIENCE = 4, 8, 240


class Client(threading.Thread):
    """Asks again and again, and retries what fails until it is answered."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.ended = threading.Event()
        self.answered: list[float] = []  # when
        self.failed_first = 0

    def run(self) -> None:
        body, headers = binary_request(np.zeros((1, 3, 28, 28), np.float32))
        while not self.ended.is_set():
            if not self.ask(body, headers):
                self.failed_first += 1
                while not self.ask(body, headers):
                    time.sleep(0.1)
            self.answered.append(time.monotonic())
            time.sleep(0.01)

    def ask(self, body: bytes, headers: dict[str, str]) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", "/v2/models/net/infer", body, headers)
            response = connection.getresponse()
            response.read()
            return response.status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def await_replicas(count: int, *, exactly: bool = True) -> float:
    """Wait until so many replicas run; return the seconds that took."""
    began = time.monotonic()
    fits: Callable[[int], bool] = (lambda running: running == count) if exactly else (lambda running: running < count)
    while not fits(running()):
        if time.monotonic() > began + PATIENCE:
            raise TimeoutError(f"{running()} replicas run")
        time.sleep(0.2)
    return time.monotonic() - began


def running() -> int:
    (deployment,) = serve.status().applications["sdzoo"].deployments.values()
    return sum(count for state, count in deployment.replica_states.items() if str(state).endswith("RUNNING"))


def main(model: str) -> None:
    port = free_port()
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    second = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    serve.run(app(Settings.of(models=(f"net={model}",), replicas=2)), name="sdzoo")
    await_replicas(2)

    clients = [Client(port) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    time.sleep(SECONDS)
    killed = time.monotonic()
    cluster.remove_node(second, allow_graceful=False)
    await_replicas(2, exactly=False)
    time.sleep(SECONDS)
    between = running()
    cluster.add_node(**NODE)
    back = await_replicas(2)
    time.sleep(SECONDS)
    for client in clients:
        client.ended.set()
    for client in clients:
        client.join()

    times = sorted(moment for client in clients for moment in client.answered)
    figures = {
        "answered": len(times),
        "answered after the kill": sum(moment > killed for moment in times),
        "failed first tries": sum(client.failed_first for client in clients),
        "longest gap, s": round(max(later - earlier for earlier, later in pairwise(times)), 3),
        "replicas while one node was gone": between,
        "replicas back after a new node, s": round(back, 1),
    }
    print(json.dumps(figures), flush=True)
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
