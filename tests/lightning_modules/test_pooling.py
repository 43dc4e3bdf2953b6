"""Poolings by hand, under padding on either side."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_modules._pooling import POOLINGS

STATES = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 30.0]])
EXPECTED = {
    "mean": [3.0, 20.0],
    "first": [1.0, 10.0],
    "last": [6.0, 30.0],
    # (1 * 1 + 2 * 2 + 3 * 6) / 6, (1 * 10 + 2 * 20 + 3 * 30) / 6
    "weighted": [23 / 6, 140 / 6],
}


def padded(before: int, after: int) -> tuple[Tensor, Tensor]:
    """The three tokens with what must not be read around them."""
    noise = torch.full((before + 3 + after, 2), 1e4)
    noise[before : before + 3] = STATES
    mask = torch.zeros(len(noise), dtype=torch.int64)
    mask[before : before + 3] = 1
    return noise, mask


def test_every_pooling_is_tested() -> None:
    assert EXPECTED.keys() == POOLINGS.keys()


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 0), (0, 2), (5, 0), (0, 5), (1, 1)])
@pytest.mark.parametrize("name", EXPECTED)
def test_pooling_is_by_hand_under_any_padding(name: str, before: int, after: int) -> None:
    states, mask = padded(before, after)
    found = POOLINGS[name](states[None], mask[None])
    assert found.shape == (1, 2)
    assert found[0].tolist() == pytest.approx(EXPECTED[name], rel=1e-6)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_row_is_pooled_by_its_own_padding(name: str) -> None:
    rows = [padded(2, 0), padded(0, 2), padded(1, 1)]
    states, mask = torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
    mask[2, 2:] = 0  # one token is left
    found = POOLINGS[name](states, mask)
    assert torch.allclose(found[:2], torch.tensor([EXPECTED[name]] * 2))
    assert found[2].tolist() == STATES[0].tolist()


@pytest.mark.parametrize("name", EXPECTED)
def test_half_precision_is_pooled_in_float32(name: str) -> None:
    # 4,096 ones add up to 256 in bfloat16, where 256 + 1 is 256
    found = POOLINGS[name](torch.ones(1, 4096, 2, dtype=torch.bfloat16), torch.ones(1, 4096, dtype=torch.int64))
    assert found.dtype == torch.float32
    assert found.tolist() == [pytest.approx([1.0, 1.0], rel=1e-4)]
