"""timm's surface of the networks: head, intermediates, feature extraction, pruning, parameter groups."""

import pytest
import timm
import torch
from networks import NAMES, noise


def test_head_can_be_taken_apart_and_replaced() -> None:
    model = timm.create_model("sd_resnet20", num_classes=7).eval()
    x = noise(2, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 64, 8, 8)
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, 64)
    assert model.get_classifier() is model.fc
    assert model.get_classifier(name_only=True) == "fc"
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, 64)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)


@pytest.mark.parametrize("size", [8, 28, 30, 33])
@pytest.mark.parametrize("chans", [1, 3])
def test_any_size_from_eight_and_any_channels(size: int, chans: int) -> None:
    model = timm.create_model("sd_resnet20", in_chans=chans)
    x = noise(2, size, chans)
    assert model.train()(x).isfinite().all()
    assert model.eval()(x).isfinite().all()


@pytest.mark.parametrize("training", [False, True])
def test_intermediates_are_those_of_the_forward(training: bool) -> None:
    model = timm.create_model("sd_resnet20").train(training)
    x = noise(2, 32)
    final, taps = model.forward_intermediates(x)
    assert [tuple(tap.shape[1:]) for tap in taps] == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]
    model.gates.step = 0
    assert torch.equal(final, model.forward_features(x))
    assert torch.equal(final, taps[-1])
    (last,) = model.forward_intermediates(x, indices=1, intermediates_only=True)
    assert last.shape == (2, 64, 8, 8)


# timm's own two tests of intermediates choose their models by module name and pass these networks by.


@pytest.mark.parametrize("name", NAMES)
def test_every_network_gives_intermediates_as_its_feature_info_says(name: str) -> None:
    model = timm.create_model(name).eval()
    info = timm.models.FeatureInfo(model.feature_info, len(model.feature_info))
    x = noise(1, 20)
    with torch.inference_mode():
        output, taps = model.forward_intermediates(x)
        assert len(taps) == len(info.channels()) == 4
        for tap, channels, reduction in zip(taps, info.channels(), info.reduction(), strict=True):
            assert tap.shape == (1, channels, 20 // reduction, 20 // reduction)
            assert tap.isfinite().all()
        assert torch.equal(output, model.forward_features(x))
        model.set_grad_checkpointing()
        assert torch.equal(model.forward_intermediates(x)[0], output)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_a_feature_extractor(name: str) -> None:
    model = timm.create_model(name, features_only=True, feature_cls="getter").eval()
    with torch.inference_mode():
        taps = model(noise(1, 20))
    assert len(taps) == len(model.feature_info.channels()) == 4
    for tap, channels, reduction in zip(
        taps, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert tap.shape == (1, channels, 20 // reduction, 20 // reduction)
        assert tap.isfinite().all()


@pytest.mark.parametrize("training", [False, True])
def test_stopping_early_leaves_the_later_stages_alone(training: bool) -> None:
    model = timm.create_model("sd_resnet20").train(training)
    called: list[str] = []
    model.layer3[0].conv1.register_forward_hook(lambda *_: called.append("layer3"))
    final, taps = model.forward_intermediates(noise(2, 32), indices=[1, 2], stop_early=True)
    assert torch.equal(final, taps[-1])
    assert final.shape == (2, 32, 16, 16)
    assert not called
    assert model.layer3[0].bn1.num_batches_tracked == 0


def test_intermediates_alone_give_every_closed_block_before_them_zeros() -> None:
    model = timm.create_model("sd_resnet20", survival=[1e-12] * 9).train()
    taps = model.forward_intermediates(noise(2, 32), indices=[1], intermediates_only=True)
    taps[0].sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.layer1.parameters())


def test_pruned_network_trains() -> None:
    model = timm.create_model("sd_resnet20", features_only=True, out_indices=(0, 2)).train()
    assert model.feature_info.channels() == [16, 32]
    assert model.feature_info.reduction() == [1, 2]
    taps = model(noise(2, 32))
    assert [tuple(tap.shape[1:]) for tap in taps] == [(16, 32, 32), (32, 16, 16)]
    sum(tap.mean() for tap in taps).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_group_matcher_puts_every_parameter_into_a_layer() -> None:
    from timm.models import group_parameters

    model = timm.create_model("sd_resnet20")
    groups = group_parameters(model, model.group_matcher())
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    assert len(groups) == 1 + 9 + 1
