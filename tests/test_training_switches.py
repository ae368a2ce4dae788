"""The switches of timm's unmodified script on our networks, each in a run of its own that really trains.

The script runs inside the test's process; what needs several ranks is in ``test_training_distributed.py``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from commandline import sdzoo
from PIL import Image
from timm.layers import convert_sync_batchnorm
from timm_runs import assert_gates_were_followed, run_script
from torch import nn
from torch._dynamo.utils import counters

from sdzoo.samples import FASHION_MNIST

Run = Callable[..., dict[str, Any]]
STEPS = 4  # 200 images in batches of 50


@pytest.fixture
def run(timm_script: Path, tmp_path: Path) -> Run:
    """Run the script into a new folder of the given name and return its last checkpoint."""

    def run(name: str, *arguments: str, **values: Any) -> dict[str, Any]:
        return run_script(timm_script, tmp_path / name, *arguments, **values)

    return run


def weights(checkpoint: dict[str, Any], key: str = "state_dict") -> dict[str, torch.Tensor]:
    """Return the parameters and statistics, without counters, gate step and schedule."""
    return {
        name: value
        for name, value in checkpoint[key].items()
        if value.dtype == torch.float32 and not name.endswith("num_batches_tracked")
    }


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Return the largest difference between two sets of weights."""
    assert list(ours) == list(theirs)
    assert len(ours) > 90
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)


@pytest.fixture(scope="module")
def plain(timm_script: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The small run without any switch."""
    return run_script(timm_script, tmp_path_factory.mktemp("plain") / "run")


def test_plain_run_follows_its_gates(plain: dict[str, Any]) -> None:
    assert_gates_were_followed(plain["state_dict"], STEPS)


def test_grad_checkpointing_changes_nothing(run: Run, plain: dict[str, Any]) -> None:
    saving = run("saving", "--grad-checkpointing")
    for name, value in plain["state_dict"].items():
        assert torch.equal(saving["state_dict"][name], value), name
    assert saving["metric"] == plain["metric"]


def test_grad_accum_steps_draws_for_every_micro_batch(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    accumulated = run("run", "--grad-accum-steps", "2", batch_size=25)
    assert_gates_were_followed(accumulated["state_dict"], 2 * STEPS)
    assert "Train: 0 [   3/4 (100%)]" in capfd.readouterr().err  # four updates of eight micro-batches


def test_model_ema_is_the_average_of_the_weights_alone(run: Run, tmp_path: Path) -> None:
    """The first update copies the weights, the second averages; the schedule of the average is the network's."""
    switches = ["--model-ema", "--model-ema-decay", "0.75"]
    second = run("run", *switches, batch_size=200, lr=0.5, epochs=2)  # one update an epoch
    first = torch.load(tmp_path / "run" / "checkpoint-0.pth.tar", weights_only=False)
    before, after = weights(first), weights(second)
    assert distance(weights(first, "state_dict_ema"), before) == 0
    assert distance(after, before) > 0.01
    expected = {name: 0.75 * value + 0.25 * after[name] for name, value in before.items()}
    assert distance(weights(second, "state_dict_ema"), expected) < 1e-5
    assert torch.equal(second["state_dict_ema"]["survival"], second["state_dict"]["survival"])


def test_amp_in_bfloat16_trains_as_float32_nearly(run: Run, plain: dict[str, Any]) -> None:
    mixed = run("run", "--amp", "--amp-dtype", "bfloat16")
    assert_gates_were_followed(mixed["state_dict"], STEPS)
    assert all(value.dtype == torch.float32 for name, value in mixed["state_dict"].items() if name.endswith("weight"))
    assert 1e-5 < distance(weights(mixed), weights(plain)) < 0.1


def test_channels_last_is_another_layout_of_the_same(run: Run, plain: dict[str, Any]) -> None:
    last = run("run", "--channels-last")
    assert_gates_were_followed(last["state_dict"], STEPS)
    weight = last["state_dict"]["layer2.1.conv1.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert distance(weights(last), weights(plain)) < 1e-3


def test_clip_grad_bounds_the_whole_step(run: Run, tmp_path: Path) -> None:
    """One step of plain gradient descent at rate 1 moves the weights by the norm that was allowed."""
    start = run("start", lr=1e-9)
    values = {"opt": "momentum", "momentum": 0.0, "weight_decay": 0.0, "batch_size": 200, "lr": 1.0}
    clipped = run(
        "run", "--initial-checkpoint", str(tmp_path / "start" / "last.pth.tar"), "--clip-grad", "0.125", **values
    )
    assert_gates_were_followed(clipped["state_dict"], STEPS + 1)
    moved = [
        (value - start["state_dict"][name]).square().sum()
        for name, value in weights(clipped).items()
        if "running" not in name
    ]
    assert float(sum(moved)) ** 0.5 == pytest.approx(0.125, rel=1e-3)


def test_drop_path_and_model_kwargs_reach_the_network(run: Run) -> None:
    options = {"survival": "uniform", "sampling": "systematic", "gate_seed": 7}
    words = [f"{key}={value}" for key, value in options.items()]
    trained = run("run", "--drop-path", "0.3", "--model-kwargs", *words)
    assert trained["state_dict"]["survival"].tolist() == pytest.approx([0.7] * 9)
    assert_gates_were_followed(trained["state_dict"], STEPS, drop_path_rate=0.3, **options)


def test_layer_decay_scales_the_rate_from_block_to_block(run: Run) -> None:
    """Eleven layers: the stem, nine blocks, the head; closed blocks are in their groups like all others."""
    trained = run("run", "--layer-decay", "0.5")
    assert_gates_were_followed(trained["state_dict"], STEPS)
    groups = trained["optimizer"]["param_groups"]
    assert {group["lr_scale"] for group in groups} == {0.5**layer for layer in range(11)}
    for group in groups:
        assert group["lr"] == pytest.approx(0.05 * group["lr_scale"])
    model = timm.create_model("sd_resnet20")
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_initial_checkpoint_brings_its_schedule(run: Run, tmp_path: Path) -> None:
    start = run("start", "--drop-path", "0.2")
    going_on = run("run", "--initial-checkpoint", str(tmp_path / "start" / "last.pth.tar"), lr=1e-9, drop_path=None)
    assert torch.equal(going_on["state_dict"]["survival"], start["state_dict"]["survival"])
    assert going_on["state_dict"]["survival"][-1] == pytest.approx(0.8)
    assert going_on["state_dict"]["gate_step"] == 2 * STEPS
    moved = [name for name in weights(start) if "running" not in name]
    assert len(moved) > 50
    assert all(torch.allclose(going_on["state_dict"][name], start["state_dict"][name], atol=1e-5) for name in moved)


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """A folder of one's own: two classes of 20 images each, in colour and of another size."""
    for name in ("bag", "sneaker"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for file in (FASHION_MNIST / name).glob("*.png"):
            Image.open(file).convert("RGB").resize((40, 40)).save(tmp_path / "own" / name / file.name)
    return tmp_path / "own"


def assert_tuned(tuned: dict[str, Any], trained: dict[str, torch.Tensor]) -> None:
    """At a rate of nothing the head is new and of the right size, all other layers are still the trained ones."""
    assert tuned["state_dict"]["fc.weight"].shape == (2, 64)
    kept = [n for n in trained if n.endswith((".weight", ".bias")) and not n.startswith("fc")]
    assert len(kept) == 3 * 19  # 19 convolutions, each with a norm
    assert all(torch.allclose(tuned["state_dict"][name], trained[name], atol=1e-5) for name in kept)
    assert torch.equal(tuned["state_dict"]["survival"], trained["survival"])


def test_weights_of_a_run_are_tuned_on_a_folder_of_ones_own(run: Run, own_folder: Path, tmp_path: Path) -> None:
    trained = run("trained", "--drop-path", "0.2")
    path = str(tmp_path / "trained" / "last.pth.tar")
    values = {"data_dir": str(own_folder), "num_classes": 2, "batch_size": 20, "lr": 1e-9, "drop_path": None}
    assert_tuned(run("tuned", "--pretrained", "--pretrained-path", path, **values), trained["state_dict"])


def test_shipped_weights_are_tuned_on_a_folder_of_ones_own(run: Run, own_folder: Path) -> None:
    shipped = [tag for tag in timm.list_pretrained("sd_*") if tag.startswith("sd_resnet20.")]
    assert shipped
    trained = timm.create_model(shipped[0], pretrained=True).state_dict()
    values = {"data_dir": str(own_folder), "num_classes": 2, "batch_size": 20, "lr": 1e-9, "drop_path": None}
    assert_tuned(run("tuned", "--pretrained", model=shipped[0], **values), trained)


def test_resume_is_exact_with_the_average(run: Run, fashion_mnist_root: Path, tmp_path: Path) -> None:
    """With bfloat16 too: it needs no loss scaler, so nothing of it is in a checkpoint."""
    switches = ["--model-ema", "--model-ema-decay", "0.9"]
    data = {"dataset": "torch/sd_fashion_mnist", "data_dir": str(fashion_mnist_root), "batch_size": 128}
    values = {"epochs": 2, "val_split": "", **data}
    whole = run("whole", *switches, **values)
    resumed = run("resumed", *switches, "--resume", str(tmp_path / "whole" / "checkpoint-0.pth.tar"), **values)
    for key in ("state_dict", "state_dict_ema"):
        for name, value in whole[key].items():
            # The gates of the average are never drawn; its step says when the average was set up.
            assert torch.equal(resumed[key][name], value) or (key, name) == ("state_dict_ema", "gate_step"), name
    momenta = [[state["momentum_buffer"] for state in c["optimizer"]["state"].values()] for c in (whole, resumed)]
    assert len(momenta[0]) > 50
    assert all(map(torch.equal, *momenta))


def test_sync_bn_converts_every_norm_and_keeps_the_weights() -> None:
    """SyncBatchNorm itself refuses a CPU; the order of calls on all ranks is tested with real ranks."""
    model = timm.create_model("sd_resnet20")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    converted = convert_sync_batchnorm(model)
    norms = [module for module in converted.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 19
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert all(torch.equal(value, weights[name]) for name, value in converted.state_dict().items())


def test_torchscript_is_refused_in_one_line(run: Run, timm_script: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sdzoo("train", "fashion_mnist_resnet20", "--torchscript", expect=1)
    said = capfd.readouterr().err
    assert said.startswith("error: stochastic depth cannot train under --torchscript")
    assert len(said.splitlines()) == 1
    with pytest.raises(Exception, match="cannot train under TorchScript"):
        run("run", "--torchscript")


# The stem, five kinds of open blocks, two shortcuts, the head, and the network that evaluates. What follows a stage
# (two blocks, two shortcuts, the head) may be seen twice: with a closed block in that stage, and without.
GRAPHS = 1 + 5 + 2 + 1 + 1 + 5


@pytest.mark.parametrize(
    ("depth", "backend", "validation"),
    [
        (20, "eager", "validation"),
        (110, "eager", ""),
        pytest.param(20, "inductor", "validation", marks=pytest.mark.slow),
        pytest.param(110, "eager", "validation", marks=pytest.mark.slow),
        pytest.param(1202, "eager", "", marks=pytest.mark.slow),
    ],
)
def test_torchcompile_has_no_graph_for_a_gate_pattern(run: Run, depth: int, backend: str, validation: str) -> None:
    """The same few graphs at every depth; ten steps of other patterns in a second epoch bring none."""
    values = {"model": f"sd_resnet{depth}", "batch_size": 20, "val_split": validation}
    counted = []
    for epochs in (1, 2):
        torch._dynamo.reset()
        counters.clear()
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            trained = run(f"run{epochs}", "--torchcompile", backend, epochs=epochs, **values)
        counted.append(counters["stats"]["unique_graphs"])
        assert_gates_were_followed(trained["state_dict"], epochs * 10)
    assert 5 < counted[0] == counted[1] <= GRAPHS
