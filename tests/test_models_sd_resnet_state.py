"""What travels with the weights of a network: schedule and gate step, and which weights are refused."""

import copy
import pickle

import pytest
import timm
import torch
from networks import blocks_of, noise
from timm.utils import ModelEmaV3

from sdzoo import survival_probabilities


def test_schedule_and_step_travel_with_the_weights() -> None:
    trained = timm.create_model("sd_resnet20", drop_path_rate=0.2).train()
    for _ in range(5):
        trained(noise(2, 8))
    loaded = timm.create_model("sd_resnet20")
    loaded.load_state_dict(trained.state_dict())
    assert loaded.survival == trained.survival
    assert loaded.gates.step == 5
    assert [b.p_l for b in blocks_of(loaded)] == [torch.tensor(p_l) for p_l in trained.survival]
    assert loaded.gates.draw() == trained.gates.draw()
    assert torch.equal(loaded.eval()(noise()), trained.eval()(noise()))


def test_schedule_survives_half_precision_unrounded() -> None:
    model = timm.create_model("sd_resnet110").bfloat16()
    assert tuple(model.state_dict()["survival"].tolist()) == survival_probabilities(54, 0.5)


def test_an_argument_wins_over_the_weights_and_warns() -> None:
    weights = timm.create_model("sd_resnet20", drop_path_rate=0.2).state_dict()
    model = timm.create_model("sd_resnet20", drop_path_rate=0.5)
    with pytest.warns(UserWarning, match=r"trained with p_L = 0\.8; using p_L = 0\.5"):
        model.load_state_dict(weights)
    assert model.survival == survival_probabilities(9, 0.5)


def test_weights_without_schedule_load_strictly_and_say_so() -> None:
    weights = timm.create_model("sd_resnet20").state_dict()
    del weights["survival"], weights["gate_step"]
    with pytest.warns(UserWarning, match="carry no survival probabilities"):
        timm.create_model("sd_resnet20").load_state_dict(weights, strict=True)


@pytest.mark.parametrize("strict", [True, False])
def test_checkpoints_with_another_option_a_are_refused(strict: bool) -> None:
    """The well-known re-implementations agree in every name but the head's, and pad their shortcuts differently."""
    weights = timm.create_model("sd_resnet20").state_dict()
    foreign = {name.replace("fc.", "linear."): value for name, value in weights.items() if name != "survival"}
    with pytest.raises(RuntimeError, match="head named 'linear'"):
        timm.create_model("sd_resnet20").load_state_dict(foreign, strict=strict)


def test_weights_of_another_depth_are_refused() -> None:
    weights = timm.create_model("sd_resnet32").state_dict()
    with pytest.raises(RuntimeError, match="15 residual blocks, this network has 9"):
        timm.create_model("sd_resnet20").load_state_dict(weights, strict=False)


def test_copies_pickles_and_averages_keep_the_gates() -> None:
    model = timm.create_model("sd_resnet20", gate_seed=5, sampling="systematic").train()
    model(noise())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.gates.step == 1
        assert copied.gates.at(1) == model.gates.at(1)
        assert copied.gates is not model.gates
    average = ModelEmaV3(model, decay=0.5)
    average.update(model)
    assert average.module.survival == model.survival
    assert average.module.eval()(noise()).isfinite().all()
