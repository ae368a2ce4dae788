"""Mode "sample": each path computes a window of the batch; the probability of every row is exactly p_l."""

import copy

import pytest
import timm
import torch
from skip_families import images, network
from torch import Tensor, nn

from sdzoo import skip_drop_path
from sdzoo.models.gates import BITS, Gates
from sdzoo.models.skip_sample import Window, add_rows, sample_windows, take

BATCH = 5


def rows_of(window: Window, batch: int) -> list[int]:
    return [(window.start + index) % batch for index in range(window.rows)]


@pytest.mark.parametrize("window", [Window(0, 5), Window(3, 2), Window(1, 3), Window(4, 3), Window(2, 5), Window(4, 1)])
def test_take_and_add_rows_equal_indexing_and_its_gradients(window: Window) -> None:
    rows = rows_of(window, BATCH)
    x = torch.randn(BATCH, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(window.rows, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(take(x, window), x[rows])
    assert torch.equal(add_rows(x, window, y), x.index_add(0, torch.tensor(rows), y))
    assert torch.autograd.gradcheck(lambda x: take(x, window), x)
    assert torch.autograd.gradcheck(lambda x, y: add_rows(x, window, y), (x, y))


@pytest.mark.parametrize("sampling", ["bernoulli", "systematic"])
@pytest.mark.parametrize("batch", [1, 3, 4, 8])
def test_number_of_rows_is_a_neighbour_of_b_p_and_right_in_the_mean(sampling: str, batch: int) -> None:
    survival = (0.6, 0.75, 1.0, 0.31)
    gates = Gates(survival, sampling, seed=3)
    steps = 4000
    counts = torch.zeros(len(survival))
    chosen = torch.zeros(len(survival), batch)
    for gates.step in range(steps):
        for path, window in enumerate(sample_windows(gates, batch)):
            assert int(batch * survival[path]) <= window.rows <= -int(-batch * survival[path] // 1)
            counts[path] += window.rows
            chosen[path, rows_of(window, batch)] += 1
    # Five standard deviations of a mean of `steps` numbers in [0, 1].
    bound = 5 * 0.5 / steps**0.5
    for path, p_l in enumerate(survival):
        assert abs(counts[path] / steps - batch * p_l) < bound
        assert (chosen[path] / steps - p_l).abs().max() < bound


def test_systematic_keeps_the_work_of_a_step_steady() -> None:
    survival = tuple(1 - (l + 1) / 20 for l in range(12))  # noqa: E741
    gates = Gates(survival, "systematic")
    totals = set()
    for gates.step in range(200):
        totals.add(sum(window.rows for window in sample_windows(gates, 8)))
    assert totals <= {int(8 * sum(survival)), int(8 * sum(survival)) + 1}


def test_probabilities_are_exact_integers() -> None:
    """The number of rows is floor(B * t + u) for the threshold t and u of 53 bits, nothing rounded."""
    gates = Gates((0.6,), seed=1)
    for gates.step in range(50):
        (window,) = sample_windows(gates, 10_000)
        t, u = round(0.6 * 2**BITS), int(gates.uniform(gates.step)[0])
        assert window.rows == (10_000 * t + u) // 2**BITS


class Rows(nn.Module):
    """timm's side: multiplies the rows of a window by 1/p, the others by zero."""

    def __init__(self, window: Window, p_l: float) -> None:
        super().__init__()
        self.window, self.p_l = window, p_l

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(len(x), *[1] * (x.ndim - 1))
        mask[rows_of(self.window, len(x))] = 1
        return x * mask.div_(self.p_l)


@pytest.mark.parametrize("family", ["ViT", "ConvNeXt", "Swin", "EVA", "Hiera", "MetaFormer"])
def test_equals_timms_drop_path_with_the_same_rows_dropped(family: str) -> None:
    """Families without BatchNorm in a branch: a row's result does not depend on the others."""
    plain = network(family)
    converted = skip_drop_path(copy.deepcopy(plain), mode="sample")
    x = images(family, batch=BATCH)
    windows = iter(sample_windows(converted._draws.gates, BATCH))
    survival = iter(converted._draws.gates.survival)
    for name, module in list(plain.named_modules()):
        if type(module).__name__ == "DropPath":
            plain.set_submodule(name, Rows(next(windows), next(survival)))
    assert next(windows, None) is None
    ours, theirs = converted(x), plain(x)
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    for (name, p), q in zip(converted.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-6), name


def test_computes_only_the_rows_it_keeps() -> None:
    converted = skip_drop_path(network("ConvNeXt"), mode="sample")
    seen = []
    for block in converted.modules():
        if hasattr(block, "_skip"):
            block.conv_dw.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    for _ in range(4):
        seen.clear()
        converted(images("ConvNeXt", batch=8))
        assert seen == [window.rows for window in converted._draws.now.windows]
        assert min(seen) < 8


def test_a_batch_of_which_nothing_is_kept_closes_the_path_with_zero_gradients() -> None:
    converted = skip_drop_path(network("ConvNeXt", drop_path_rate=0.8), mode="sample")
    nothing = 0
    for _ in range(6):
        converted.zero_grad()
        converted(images("ConvNeXt", batch=1)).square().mean().backward()
        for block in converted.modules():
            if hasattr(block, "_skip") and converted._draws.now.windows[block._skip.first].rows == 0:
                nothing += 1
                assert all(torch.count_nonzero(p.grad) == 0 for p in block.mlp.parameters())
        assert all(p.grad is not None for p in converted.parameters())
    assert nothing > 0


@pytest.mark.parametrize(("name", "size"), [("tnt_s_legacy_patch16_224", 224)])
def test_a_block_that_folds_something_into_dimension_0_is_an_error(name: str, size: int) -> None:
    model = timm.create_model(name, drop_path_rate=0.4, depth=2)
    converted = skip_drop_path(model.train(), mode="sample", schedule="uniform")
    with pytest.raises(RuntimeError, match=r'block blocks\.0 has 392 rows for a batch of 2.*use mode="batch"'):
        for _ in range(8):
            converted(torch.randn(2, 3, size, size))


def test_positions_are_not_taken_for_samples() -> None:
    """A batch as large as the number of tokens: the rotary embedding stays whole."""
    model = network("EVA")
    x = images("EVA", batch=16)
    tokens = model.forward_features(x).shape[1] - model.num_prefix_tokens
    assert tokens == len(x)
    skip_drop_path(model, mode="sample")
    assert model(x).isfinite().all()
