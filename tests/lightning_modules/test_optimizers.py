"""The optimisers are the libraries' and each of them learns."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import nn

from lightning_modules._optimizers import OptimizerName, check_optimizer, make_optimizer, state_bytes
from recpeft.errors import RecpeftError

SIZE = 128  # 128 x 128 weights are enough for bitsandbytes to keep their state in 8 bits


def trained(name: str, steps: int = 30) -> tuple[Any, float, float]:
    """An optimiser after ``steps`` on a small regression, and the loss before and after."""
    torch.manual_seed(0)
    layer = nn.Linear(SIZE, SIZE)
    x = torch.randn(256, SIZE)
    y = x @ torch.randn(SIZE, SIZE) / SIZE**0.5
    optimizer = make_optimizer(name, [{"params": list(layer.parameters()), "lr": 1e-2, "weight_decay": 0.0}])
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ((layer(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return optimizer, losses[0], losses[-1]


@pytest.mark.parametrize("name", [n for n in get_args(OptimizerName) if not n.startswith("paged")])
def test_an_optimiser_lowers_the_loss(name: str) -> None:
    _, before, after = trained(name)
    assert after < before / 2


def test_eight_bit_adamw_keeps_a_quarter_of_adamws_state() -> None:
    full, eight = (state_bytes(trained(name, steps=1)[0]) for name in ("adamw", "adamw_8bit"))
    # two moments of 4 bytes a parameter, and a step count of 4 for weight and bias
    assert full == 2 * 4 * (SIZE * SIZE + SIZE) + 2 * 4
    assert full / 5 < eight < full / 3


@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw_8bit"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="refused where there is no CUDA device")
def test_paging_without_a_gpu_is_refused_rather_than_left_out(name: Any) -> None:
    with pytest.raises(RecpeftError, match=rf"training\.optimizer is {name} but paging needs a CUDA device"):
        check_optimizer(name)
    with pytest.raises(RecpeftError, match="use adamw"):
        make_optimizer(name, [])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw_8bit"])
def test_a_paged_optimiser_lowers_the_loss(name: str) -> None:
    with torch.device("cuda"):
        _, before, after = trained(name)
    assert after < before / 2
