"""One rank of a plain DistributedDataParallel run on CPU: ten steps, then what every rank must agree on."""

import hashlib
import json
import sys
from pathlib import Path

import timm
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import sdzoo  # noqa: F401  registers the zoo

STEPS = 10


def main(output: str) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.manual_seed(0)
    network = timm.create_model("sd_resnet20", drop_path_rate=0.5)
    torch.manual_seed(rank)  # as timm's script does: every rank its own
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    gates = []
    for step in range(STEPS):
        gates.append(network.gates.at(step))
        loss = model(torch.randn(4, 3, 16, 16)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    parameters = b"".join(p.detach().numpy().tobytes() for p in network.parameters())
    result = {"gates": gates, "step": network.gates.step, "sha256": hashlib.sha256(parameters).hexdigest()}
    Path(f"{output}.{rank}").write_text(json.dumps(result))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
