"""Matrix products in true float32, whatever the program around has chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["full_float32"]


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep TF32 and bfloat16 out of torch's float32 products."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
