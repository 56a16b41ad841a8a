"""Gradients of depthwise convolutions on maps smaller than their kernel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featcache.distillation.depthwise import use_fast_gradients


@pytest.mark.parametrize(
    ("kernel", "size", "stride", "padding"),
    [(5, (3, 3), 1, 2), (5, (2, 4), 1, 2), (5, (4, 3), 2, 2), (3, (2, 1), 1, 1), (7, (3, 5), (2, 1), (3, 2))],
)
def test_gradients_are_those_of_autograd(kernel, size, stride, padding):
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, kernel, stride=stride, padding=padding, groups=6, bias=False)
    fast = nn.Conv2d(6, 6, kernel, stride=stride, padding=padding, groups=6, bias=False)
    fast.load_state_dict(plain.state_dict())
    use_fast_gradients(nn.Sequential(fast))
    plain.double()
    images = torch.randn(5, 6, *size)
    one, other = images.double().requires_grad_(), images.clone().requires_grad_()
    expected, found = plain(one), fast(other)
    assert "SmallMap" in type(found.grad_fn).__name__
    weights = torch.randn_like(found)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    assert torch.allclose(found.double(), expected, atol=1e-5)
    assert torch.allclose(other.grad.double(), one.grad, atol=1e-4)
    assert torch.allclose(fast.weight.grad.double(), plain.weight.grad, atol=1e-4)


def test_other_convolutions_stay_as_they_are():
    wide = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
    dense = nn.Conv2d(6, 6, 5, padding=2, bias=False)
    use_fast_gradients(nn.Sequential(wide, dense))
    images = torch.randn(2, 6, 3, 3)
    assert "SmallMap" not in type(wide(images).grad_fn).__name__
    assert "SmallMap" not in type(dense(images[:, :, :2, :2]).grad_fn).__name__
