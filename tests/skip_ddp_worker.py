"""One rank of a plain DistributedDataParallel run of a converted timm network on CPU."""

import json
import sys
from pathlib import Path

import timm
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from sdzoo import skip_drop_path

STEPS = 8


def main(family: str, mode: str, output: str) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.manual_seed(0)
    network = skip_drop_path(timm.create_model(family, drop_path_rate=0.5).train(), mode=mode, schedule="uniform")
    torch.manual_seed(rank)  # as timm's script does: every rank its own
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    windows = []
    for _ in range(STEPS):
        model(torch.randn(4, 3, 64, 64)).square().mean().backward()
        windows.append(network._draws.now.windows)
        optimizer.step()
        optimizer.zero_grad()
    digest = float(sum(p.double().abs().sum() for p in network.parameters()))
    result = {"windows": windows, "step": network._draws.gates.step, "weights": digest}
    Path(f"{output}.{rank}").write_text(json.dumps(result))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
