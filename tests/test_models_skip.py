"""``skip_drop_path``: what is skipped, exactly; options, schedules and rules; bad input."""

import copy
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
from skip_families import FAMILIES, images, network
from timm.layers import DropPath
from torch import Tensor, nn

from sdzoo import skip_drop_path, unskip
from sdzoo.models.skip_check import compare, timm_with_gates, with_gates
from sdzoo.models.skip_trace import CannotConvertError

# What only the sum of a gradient in another memory layout explains, relative to the largest gradient.
ROUNDING = 1e-6


def test_ten_families_are_swept() -> None:
    assert len(FAMILIES) == 10


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_and_open_paths_equal_timms_to_the_bit(family: str) -> None:
    """The other side is timm's network whose DropPaths multiply by 0 or 1/p."""
    converted = skip_drop_path(network(family))
    comparison = compare(converted, images(family))
    assert comparison.paths > 0
    assert comparison.outputs == 0
    assert comparison.missing == ()
    assert comparison.gradients <= ROUNDING


@pytest.mark.parametrize("family", FAMILIES)
def test_names_evaluation_and_repr_stay_timms(family: str) -> None:
    model = network(family)
    converted = skip_drop_path(copy.deepcopy(model))
    assert {*converted.state_dict()} == {*model.state_dict(), "gate_step"}
    assert repr(converted) == repr(model)
    assert type(converted).__name__ == type(model).__name__
    assert isinstance(converted, type(model))
    with torch.no_grad():
        assert torch.equal(converted.eval()(images(family)), model.eval()(images(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_closed_branch_is_not_computed(family: str) -> None:
    """With all paths closed no module of a branch is called; with all open each is."""
    converted = skip_drop_path(network(family))
    owned = [
        block.get_submodule(name)
        for block in converted.modules()
        if hasattr(block, "_skip")
        for plan in block._skip.plans.values()
        for path in plan.paths
        for name in path.owned
        if not isinstance(block.get_submodule(name.rpartition(".")[0]).__getattr__(name.rpartition(".")[2]), Tensor)
    ]
    assert owned
    for is_open in (False, True):
        fixed = with_gates(converted, [is_open] * len(converted._draws.gates.survival))
        calls = _count_calls(fixed, converted, owned)
        fixed(images(family))
        assert all(count > 0 if is_open else count == 0 for count in calls)


def _count_calls(fixed: nn.Module, converted: nn.Module, owned: list[nn.Module]) -> list[int]:
    names = {module: name for name, module in converted.named_modules()}
    calls = [0] * len(owned)
    for index, module in enumerate(owned):
        fixed.get_submodule(names[module]).register_forward_hook(_counter(calls, index))
    return calls


def _counter(calls: list[int], index: int) -> Callable[..., None]:
    def count(*_: object) -> None:
        calls[index] += 1

    return count


def test_the_comparison_notices_a_wrong_scale() -> None:
    converted = skip_drop_path(network("ViT"))
    scale = next(module._skip.scales[0] for module in converted.modules() if hasattr(module, "_skip"))
    wrong = copy.deepcopy(converted)
    wrong_scale = next(module._skip.scales[0] for module in wrong.modules() if hasattr(module, "_skip"))
    wrong_scale.mul_(1.001)
    assert not torch.equal(scale, wrong_scale)
    pattern = [True] * len(converted._draws.gates.survival)
    x = images("ViT")
    assert torch.equal(with_gates(converted, pattern)(x), timm_with_gates(converted, pattern)(x))
    assert not torch.equal(with_gates(wrong, pattern)(x), timm_with_gates(converted, pattern)(x))


def test_keep_probabilities_are_those_of_the_drop_paths() -> None:
    model = network("ViT", drop_path_rate=0.4)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert len(rates) == 10
    converted = skip_drop_path(model)
    assert converted._draws.gates.survival == tuple(1 - rate for rate in rates)


def test_gates_follow_the_counter_and_advance_by_one_a_training_forward() -> None:
    converted = skip_drop_path(network("ViT"), gate_seed=7)
    gates = converted._draws.gates
    expected = [gates.at(step) for step in range(3)]
    assert expected[0] != expected[1]
    seen = []
    for _ in expected:
        converted(images("ViT"))
        seen.append([window.rows > 0 for window in converted._draws.now.windows])
    assert seen == expected
    converted.eval()(images("ViT"))
    assert gates.step == 3


def test_random_state_of_torch_is_left_alone() -> None:
    converted = skip_drop_path(network("ConvNeXt"))
    state = torch.random.get_rng_state()
    converted(images("ConvNeXt"))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_closed_parameters_get_zero_gradients_that_accumulate() -> None:
    converted = skip_drop_path(network("ResNet"))
    fixed = with_gates(converted, [False] * len(converted._draws.gates.survival))
    closed = [p for block in fixed.modules() if hasattr(block, "_skip") for p in block.conv1.parameters()]
    assert closed
    for _ in range(2):
        fixed(images("ResNet")).sum().backward()
        assert all(torch.count_nonzero(p.grad) == 0 for p in closed)
        for p in closed:
            p.grad.add_(1)  # a cached buffer of zeros would be written into here
            p.grad.sub_(1)


# --- schedules and rules


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_schedule_is_the_papers_over_all_paths(family: str) -> None:
    converted = skip_drop_path(network(family), schedule="linear")
    survival = converted._draws.gates.survival
    drop_paths = {id(m) for m in converted.modules() if isinstance(m, DropPath) and m.drop_prob > 0}
    L = len(survival)
    assert L > 1
    if len(drop_paths) == L:  # no DropPath is shared
        assert survival == pytest.approx([1 - l / L * 0.4 for l in range(1, L + 1)])  # noqa: E741
    timms = skip_drop_path(network(family))
    assert len(timms._draws.gates.survival) <= L
    if family in ("ResNet", "ConvNeXt", "ViT"):  # whose first blocks have no DropPath of timm's
        assert len(timms._draws.gates.survival) < L
    assert compare(converted, images(family)).outputs == 0


def test_the_papers_schedule_of_resnet50() -> None:
    """16 blocks, the first included: p_l = 1 - l/16 * (1 - 0.5)."""
    with torch.device("meta"):
        model = timm.create_model("resnet50", drop_path_rate=0.5)
    converted = skip_drop_path(model, schedule="linear", rule="paper")
    assert converted._draws.gates.survival == pytest.approx([1 - l / 32 for l in range(1, 17)], abs=1e-12)  # noqa: E741
    assert converted.layer1[0].drop_path.drop_prob == pytest.approx(1 / 32)


def test_uniform_schedule() -> None:
    converted = skip_drop_path(network("ConvNeXt"), schedule="uniform")
    assert converted._draws.gates.survival == pytest.approx([0.6] * len(converted._draws.gates.survival))
    assert len(converted._draws.gates.survival) == len([m for m in converted.modules() if "Block" in type(m).__name__])


@pytest.mark.parametrize(("family", "schedule"), [("ViT", None), *((family, "linear") for family in FAMILIES)])
def test_paper_rule(family: str, schedule: str | None) -> None:
    """No scale in training; in evaluation p_l * f, as timm's network with multiplications by p_l computes it."""
    converted = skip_drop_path(network(family), rule="paper", schedule=schedule)
    comparison = compare(converted, images(family))  # factors 0 and 1
    assert comparison.outputs == 0 and comparison.paths > 0
    survival = converted._draws.gates.survival
    reference = timm_with_gates(converted, [True] * len(survival))
    factors = [factor for m in reference.modules() if hasattr(m, "factors") for factor in m.factors.values()]
    assert len(factors) == len(survival)
    for factor, p_l in zip(factors, survival, strict=True):
        factor.fill_(p_l)
    with torch.no_grad():
        ours, theirs = converted.eval()(images(family)), reference.eval()(images(family))
        plain = unskip(converted).eval()(images(family))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_unskip_restores_timms_network(family: str) -> None:
    model = network(family)
    before = repr(model), {id(m): type(m) for m in model.modules()}, [*vars(model)]
    unskip(skip_drop_path(model, rule="paper", schedule="linear"))
    assert (repr(model), {id(m): type(m) for m in model.modules()}, [*vars(model)]) == before
    outputs = []
    for timms in (model, network(family)):
        torch.manual_seed(3)  # of timm's DropPaths
        outputs.append(timms(images(family)))
    assert torch.equal(*outputs)


# --- what cannot be


class Dense(nn.Module):
    """A block whose DropPath does not lead to a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Conv2d(3, 3, 1)
        self.drop_path = DropPath(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.drop_path(self.f(x))], dim=1)


class Residual(nn.Module):
    """A block of nobody's library."""

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        self.f = nn.Conv2d(3, 3, 1)
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.f(x))


class Deciding(Residual):
    """A block that decides on the numbers it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


def test_any_module_with_drop_path_works_even_a_single_block() -> None:
    converted = skip_drop_path(Residual().train())
    x = torch.randn(2, 3, 4, 4)
    expected = {True: x + 2 * converted.f(x), False: x}
    for step in range(6):
        (is_open,) = converted._draws.gates.at(step)
        assert torch.allclose(converted(x), expected[is_open])


@pytest.mark.parametrize(
    ("block", "reason"), [(Dense, "cat stands between drop_path and a sum"), (Deciding, "torch.fx cannot trace it")]
)
def test_a_block_that_cannot_be_converted_is_named(block: type[nn.Module], reason: str) -> None:
    model = nn.Sequential(Residual(), block())
    with pytest.raises(CannotConvertError, match=rf"block 1 \({block.__name__}\): .*{reason}.*strict=False"):
        skip_drop_path(model)
    assert type(model[0]) is Residual
    with pytest.warns(UserWarning, match=r"1 of timm's DropPaths stay, the first in block 1") as said:
        skip_drop_path(model, strict=False)
    assert len(said) == 1
    assert len(model._draws.gates.survival) == 1
    assert model.train()(torch.randn(2, 3, 4, 4)).shape[0] == 2


def test_strict_false_still_needs_one_path() -> None:
    with pytest.raises(CannotConvertError, match="block 0"):
        skip_drop_path(nn.Sequential(Dense()), strict=False)


def test_a_failed_conversion_leaves_no_trace() -> None:
    model = nn.Sequential(Residual(), Dense())
    before = repr(model), [type(m) for m in model.modules()]
    with pytest.raises(CannotConvertError):
        skip_drop_path(model, rule="paper", schedule="linear")
    assert (repr(model), [type(m) for m in model.modules()]) == before


def test_rate_zero_is_said_and_changes_nothing() -> None:
    model = network("ViT", drop_path_rate=0.0)
    with pytest.warns(UserWarning, match="rate 0: nothing to skip"):
        assert skip_drop_path(model, rule="paper", schedule="linear") is model
    assert [*model.state_dict()] == [*network("ViT").state_dict()]


def test_a_model_without_drop_path_is_an_error() -> None:
    with pytest.raises(ValueError, match="no branch of this Sequential passes through timm's DropPath"):
        skip_drop_path(nn.Sequential(nn.Linear(2, 2)))


def test_twice_is_an_error_and_unskip_of_nothing_too() -> None:
    model = skip_drop_path(network("ConvNeXt"))
    with pytest.raises(ValueError, match="already skips"):
        skip_drop_path(model)
    skip_drop_path(unskip(model))
    with pytest.raises(ValueError, match="nothing to undo"):
        unskip(network("ConvNeXt"))


@pytest.mark.parametrize("rate", [1.0, 1.5, -0.5])
def test_a_rate_outside_its_range_is_an_error(rate: float) -> None:
    model = nn.Sequential(Residual(rate))
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        skip_drop_path(model, rule="paper")
    assert type(model[0].drop_path) is DropPath


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("mode", "row", "batch, sample"),
        ("rule", "timm", "inverted, paper"),
        ("schedule", "cosine", "None, linear, uniform"),
        ("sampling", "poisson", "bernoulli, systematic"),
        ("gate_seed", -1, r"\[0, 2\*\*64\)"),
    ],
)
def test_unknown_options_are_errors(option: str, value: object, allowed: str) -> None:
    model = network("ConvNeXt")
    with pytest.raises(ValueError, match=f"{option} is {value!r}, must be .*{allowed}"):
        skip_drop_path(model, **{option: value})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        skip_drop_path(model)


class Conditioned(nn.Module):
    """A network whose blocks take a second tensor, computed from parameters that nothing else uses."""

    def __init__(self) -> None:
        super().__init__()
        self.condition = nn.Linear(4, 4)
        self.block = ConditionedBlock()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, self.condition(x))


class ConditionedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(4, 4)
        self.drop_path = DropPath(0.5)

    def forward(self, x: Tensor, condition: Tensor, twice: bool | None = None) -> Tensor:
        if twice:
            x = x + self.drop_path(self.f(x))
        return x + self.drop_path(self.f(x) * condition)


def test_what_a_closed_path_takes_besides_its_input_gets_zero_gradients_too() -> None:
    closed = with_gates(skip_drop_path(Conditioned().train()), [False])
    closed(torch.randn(2, 4)).sum().backward()
    for parameter in closed.parameters():
        assert torch.count_nonzero(parameter.grad) == 0


def test_a_call_that_runs_other_paths_than_were_converted_is_an_error() -> None:
    converted = skip_drop_path(Conditioned().train())
    x = torch.randn(2, 4)
    with pytest.raises(CannotConvertError, match="block block: this call has 2 residual paths, 1 were converted"):
        converted._draws.forward(converted.block, x, x, twice=True)
