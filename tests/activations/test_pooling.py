"""Pooling against loops over rows and real tokens."""

from __future__ import annotations

import pytest
import torch

from probekit.activations.hooks import POOLERS


def batch(side: str, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """States (4, 6, 5) of rows with 6, 3, 1 and 2 tokens; padded places hold poison."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, 6, 5, generator=generator).to(dtype)
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 2])[:, None]
    if side == "left":
        mask = mask.flip(1)
    poison = torch.tensor([float("nan"), float("inf"), float("-inf"), 1e30, -1e30], dtype=dtype)
    return torch.where(mask[:, :, None], states, poison), mask


def by_loop(states: torch.Tensor, mask: torch.Tensor, name: str) -> torch.Tensor:
    rows = []
    for row, real in zip(states, mask, strict=True):
        tokens = [state.double() for state, keep in zip(row, real, strict=True) if keep]
        rows.append(
            {
                "first": tokens[0],
                "last": tokens[-1],
                "mean": sum(tokens) / len(tokens),
                "max": torch.stack(tokens).max(0).values,
            }[name]
        )
    return torch.stack(rows)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", sorted(POOLERS))
def test_only_real_tokens_count_on_either_side(name: str, side: str) -> None:
    states, mask = batch(side)
    found = POOLERS[name](states, mask)
    # Selection is exact; a mean of six float32 numbers is not.
    tolerance = 1e-6 if name == "mean" else 0
    torch.testing.assert_close(found.double(), by_loop(states, mask, name), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", sorted(POOLERS))
def test_no_mask_is_a_mask_of_ones(name: str) -> None:
    states = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    ones = torch.ones(3, 4, dtype=torch.bool)
    torch.testing.assert_close(POOLERS[name](states, None), POOLERS[name](states, ones))


def test_mean_is_accumulated_in_float32() -> None:
    # 2,000 tokens of 1 and one of 256: bfloat16 cannot count beyond 256 in steps of 1.
    states = torch.ones(1, 2001, 1, dtype=torch.bfloat16)
    states[0, 0] = 256
    for mask in (None, torch.ones(1, 2001, dtype=torch.bool)):
        found = POOLERS["mean"](states, mask)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(2256 / 2001, rel=1e-6)
    count = torch.tensor(256.0, dtype=torch.bfloat16)
    assert count + 1 == count  # control


@pytest.mark.parametrize("name", ["first", "last"])
def test_what_is_picked_is_a_copy(name: str) -> None:
    states = torch.zeros(2, 1, 3)
    found = POOLERS[name](states, None)
    states += 1  # as a later block that adds in place would
    assert found.sum() == 0
