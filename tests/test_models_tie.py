"""The zero tie: fresh zeros for closed parameters, nothing else changed."""

import torch
from torch.nn import Parameter

from sdzoo.models.tie import tie_zero_gradients


def test_gives_zeros_and_passes_the_gradient_on() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    closed = [Parameter(torch.randn(4)), Parameter(torch.randn(2, 3, 3, 3))]
    y = tie_zero_gradients(x, closed)
    assert torch.equal(y, x)
    (y * torch.arange(3.0)).sum().backward()
    assert torch.equal(x.grad, torch.arange(3.0).expand(2, 3))
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in closed)


def test_every_backward_has_storage_of_its_own() -> None:
    closed = Parameter(torch.ones(3))
    tie_zero_gradients(torch.ones(1, requires_grad=True), [closed]).sum().backward()
    closed.grad += 5  # what accumulation does in place
    kept = closed.grad
    closed.grad = None
    tie_zero_gradients(torch.ones(1, requires_grad=True), [closed]).sum().backward()
    assert torch.equal(closed.grad, torch.zeros(3))
    assert torch.equal(kept, torch.full((3,), 5.0))


def test_accumulates_onto_a_gradient_that_is_there() -> None:
    closed = Parameter(torch.ones(3))
    (closed.sum() + tie_zero_gradients(torch.ones(1, requires_grad=True), [closed]).sum()).backward()
    assert torch.equal(closed.grad, torch.ones(3))


def test_frozen_parameters_stay_without_gradient() -> None:
    frozen, trained = Parameter(torch.ones(1), requires_grad=False), Parameter(torch.ones(1))
    tie_zero_gradients(torch.ones(1), [frozen, trained]).sum().backward()
    assert frozen.grad is None
    assert trained.grad is not None


def test_nothing_closed_is_no_operation() -> None:
    x = torch.ones(1, requires_grad=True)
    assert tie_zero_gradients(x, []) is x


def test_memory_format_of_the_gradient_is_the_parameters() -> None:
    weight = Parameter(torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last))
    tie_zero_gradients(torch.ones(1, requires_grad=True), [weight]).sum().backward()
    assert weight.grad.is_contiguous(memory_format=torch.channels_last)
