"""What happens to a converted network afterwards: copies, files, scripts, checkpointing, compilation."""

import copy
import io
import pickle
import warnings

import pytest
import timm
import torch
from skip_families import images, network
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from sdzoo import skip_drop_path, unskip

# Of gradients summed in another memory layout, as timm's own network has it too when it is checkpointed.
ROUNDING = 1e-6


def converted(family: str = "ViT", **options: object) -> nn.Module:
    return skip_drop_path(network(family), **options)


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Run one training step; return the output and all gradients."""
    model.zero_grad()
    output = model(x)
    output.square().mean().backward()
    return output.detach(), [parameter.grad.clone() for parameter in model.parameters()]


def assert_same_training(a: nn.Module, b: nn.Module, family: str, steps: int = 3) -> None:
    for step in range(steps):
        (output, ours), (expected, theirs) = (gradients(model, images(family, seed=step)) for model in (a, b))
        assert torch.equal(output, expected)
        assert ours
        largest = max(float(gradient.abs().max()) for gradient in theirs)
        for gradient, other in zip(ours, theirs, strict=True):
            assert (gradient - other).abs().max() <= ROUNDING * largest


# --- copies and files


@pytest.mark.parametrize("rule", ["inverted", "paper"])
def test_deepcopy_and_pickle_train_on_alike_and_apart(rule: str) -> None:
    model = converted("ViT", rule=rule, schedule="linear")
    model(images("ViT"))
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for twin in copies:
        assert type(twin) is type(model)
        assert twin._draws.gates.step == 1
        assert_same_training(copy.deepcopy(model), twin, "ViT")
    assert model._draws.gates.step == 1  # its copies have counters of their own


def test_torch_save_of_a_network_that_is_one_block() -> None:
    block = next(
        m for m in network("ViT").modules() if type(m).__name__ == "Block" and len(list(m.drop_path1.modules()))
    )
    block.drop_path1 = block.drop_path2 = timm.layers.DropPath(0.5)
    model = skip_drop_path(block.train())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    x = torch.randn(2, 17, 64)
    for _ in range(4):
        assert torch.equal(model(x), loaded(x))


def test_checkpoints_load_both_ways() -> None:
    plain, ours = network("ResNet"), converted("ResNet")
    for _ in range(3):
        ours(images("ResNet"))
    state = ours.state_dict()
    assert int(state.pop("gate_step")) == 3
    plain.load_state_dict(state)
    fresh = converted("ResNet")
    fresh.load_state_dict(plain.state_dict())  # without the step: the sequence stays where it is
    assert fresh._draws.gates.step == 0
    fresh.load_state_dict(ours.state_dict())
    assert fresh._draws.gates.step == 3
    assert_same_training(fresh, ours, "ResNet")


def test_resume_continues_the_same_gates_and_weights() -> None:
    """Six steps in one go, or three, a file, and three more."""

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            model(images("ResNet", seed=step)).square().mean().backward()
            optimizer.step()

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = converted("ResNet", sampling="systematic", schedule="linear")
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)

    straight, optimizer = start()
    train(straight, optimizer, range(6))
    first, optimizer = start()
    train(first, optimizer, range(3))
    saved = pickle.dumps((first.state_dict(), optimizer.state_dict()))
    resumed, optimizer = start()
    weights, moments = pickle.loads(saved)
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    train(resumed, optimizer, range(3, 6))
    for name, expected in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], expected), name


def test_ema_averages_the_weights() -> None:
    model = converted("ConvNeXt")
    ema = ModelEmaV3(model, decay=0.5)
    before = next(model.parameters()).detach().clone()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    ema.update(model)
    assert torch.allclose(next(ema.module.parameters()), before + 0.5)
    assert ema.module(images("ConvNeXt")).shape == (2, 1000)


# --- evaluation


@pytest.mark.parametrize("rule", ["inverted", "paper"])
@pytest.mark.parametrize("family", ["ResNet", "ViT"])
def test_torch_script_in_evaluation(family: str, rule: str) -> None:
    model = converted(family, rule=rule, schedule="linear").eval()
    scripted = torch.jit.script(model)
    with torch.no_grad():
        assert torch.equal(scripted(images(family)), model(images(family)))
    model.train()(images(family))  # still converted
    assert model._draws.gates.step == 1


def test_torch_script_in_training_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"evaluation mode only.*call .eval\(\) first"):
        torch.jit.script(converted("ConvNeXt"))


def test_export_and_fx_see_timms_evaluation() -> None:
    model, x = converted("ViT").eval(), images("ViT")
    exported = torch.export.export(model, (x,)).module()
    traced = torch.fx.symbolic_trace(converted("ResNet").eval())
    with torch.no_grad():
        assert torch.equal(exported(x), model(x))
        assert torch.equal(traced(images("ResNet")), converted("ResNet").eval()(images("ResNet")))


# --- timm's surface


def test_forward_intermediates_and_features_tie_all_parameters() -> None:
    model = converted("ViT")
    model.reset_classifier(7)
    assert model(images("ViT")).shape == (2, 7)
    model.zero_grad()
    final, intermediates = model.forward_intermediates(images("ViT"))
    assert type(intermediates) is list and len(intermediates) > 1
    sum(x.mean() for x in [final, *intermediates]).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None and not n.startswith("head")]
    assert without == []
    model.zero_grad()
    model.forward_features(images("ViT")).mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None and not n.startswith("head")]
    assert without == []
    assert model._draws.gates.step == 3


def test_features_only_networks_convert_too() -> None:
    features = timm.create_model("test_resnet", features_only=True, drop_path_rate=0.4).train()
    model = skip_drop_path(features, schedule="uniform")
    outputs = model(torch.randn(2, 3, 64, 64))
    assert len(outputs) == 5
    assert model._draws.gates.step == 1 and len(model._draws.gates.survival) == 4


def test_a_pruned_network_ties_what_is_left() -> None:
    model = converted("ViT", schedule="uniform")
    model.prune_intermediate_layers([1], prune_head=True)
    for _ in range(4):
        model.zero_grad()
        model.forward_features(images("ViT")).mean().backward()
        assert all(p.grad is not None for p in model.blocks.parameters())


def test_a_block_called_on_its_own_is_timms() -> None:
    model, plain = converted("ViT"), network("ViT")
    x = torch.randn(4, 17, 64)
    torch.manual_seed(2)
    expected = plain.blocks[3](x)
    torch.manual_seed(2)
    assert torch.equal(model.blocks[3](x), expected)


# --- gradients


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["ViT", "ConvNeXt", "ResNet"])
def test_gradient_checkpointing_equals_the_plain_run(family: str, reentrant: bool) -> None:
    """The same outputs, gradients and BatchNorm statistics."""
    options = {"schedule": "uniform"}
    plain, checkpointed = converted(family, **options), converted(family, **options)
    checkpointed.set_grad_checkpointing()
    timm.layers.config.set_reentrant_ckpt(reentrant)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of inputs without gradient, before the first block
            assert_same_training(plain, checkpointed, family)
    finally:
        timm.layers.config.set_reentrant_ckpt(False)
    for (name, buffer), other in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(buffer, other), name


@pytest.mark.parametrize("mode", ["batch", "sample"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_forwards_then_one_backward(mode: str, checkpointing: bool) -> None:
    """Gradients are the sum of those of two steps, each with its own gates."""
    together, apart = converted("ViT", mode=mode), converted("ViT", mode=mode)
    together.set_grad_checkpointing(checkpointing)
    batches = [images("ViT", batch=4, seed=seed) for seed in range(2)]
    sum(together(x).square().mean() for x in batches).backward()
    for x in batches:
        apart(x).square().mean().backward()
    for (name, ours), theirs in zip(together.named_parameters(), apart.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7), name


def test_no_grad_and_frozen_parameters() -> None:
    model = converted("ResNet", schedule="uniform")
    with torch.no_grad():
        assert not model(images("ResNet")).requires_grad
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.fc.requires_grad_(True)
    for _ in range(4):
        model(images("ResNet")).mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["fc.weight", "fc.bias"]


# --- torch.compile


COMPILED = [("ViT", "batch"), ("ConvNeXt", "batch"), pytest.param("ViT", "sample", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("family", "mode"), COMPILED)
def test_no_graph_is_compiled_for_a_gate_pattern(family: str, mode: str) -> None:
    """Steps with gate patterns not seen before compile nothing new, and compute what eager mode computes."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model, eager = converted(family, mode=mode), converted(family, mode=mode)
    compiled = torch.compile(model, backend=counter)
    x = images(family, batch=5)
    patterns, counts = set(), []
    for _ in range(14):
        assert torch.allclose(compiled(x), eager(x), rtol=1e-3, atol=1e-4)
        patterns.add(tuple(model._draws.now.windows))
        counts.append(counter.frame_count)
    assert len(patterns) > 8
    assert counts[-1] == counts[5]
    assert counts[-1] <= (24 if mode == "sample" else 16)


@pytest.mark.parametrize("mode", ["batch", pytest.param("sample", marks=pytest.mark.slow)])
def test_no_limit_of_recompilation_is_hit(mode: str) -> None:
    """ResNet-26 has eight blocks of eight shapes: at dynamo's limit for one function, which then runs uncompiled."""
    torch.compiler.reset()
    model = timm.create_model("resnet26", drop_path_rate=0.4, num_classes=10).train()
    compiled = torch.compile(skip_drop_path(model, mode=mode, schedule="uniform"), backend=CompileCounter())
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for _ in range(10):
            compiled(torch.randn(4, 3, 32, 32)).sum().backward()


def test_compiled_evaluation_is_one_graph() -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = converted("ViT").eval()
    with torch.no_grad():
        assert torch.allclose(torch.compile(model, backend=counter)(images("ViT")), model(images("ViT")), atol=1e-5)
    assert counter.frame_count == 1


def test_unskip_after_training_keeps_the_weights() -> None:
    model = converted("ConvNeXt")
    model(images("ConvNeXt")).mean().backward()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain = unskip(model)
    assert all(torch.equal(p, weights[name]) for name, p in plain.named_parameters())
    assert "gate_step" not in plain.state_dict()
