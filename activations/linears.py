"""Send the linear layers of a forward pass on x86 processors to oneDNN instead of MKL.

PyTorch multiplies float32 matrices with MKL there, and with oneDNN wherever it compiles a model.
The results differ by rounding; on AMD oneDNN is 10 to 25 % faster (benchmarks/extraction.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["fast_linears"]


def fast_linears(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, ``torch.nn.functional.linear`` of float32 on the processor runs in oneDNN.

    For a forward pass without gradients that begins on ``device``. Nothing changes without MKL or
    oneDNN, or where ``torch.backends.mkldnn.enabled`` is False.
    """
    mkl, onednn = torch.backends.mkl, torch.backends.mkldnn
    both = mkl.is_available() and onednn.is_available()  # type: ignore[no-untyped-call]
    if _product is None or device.type != "cpu" or not both or not onednn.enabled:
        return nullcontext()
    return _Linears()


class _Linears(TorchFunctionMode):
    """A mode, so that the model itself stays as it is and every kind of model is reached."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.nn.functional.linear:
            func = _linear
        return func(*args, **(kwargs or {}))


def _linear(
    input: torch.Tensor,  # noqa: A002 (as torch.nn.functional.linear names it)
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> Any:
    given = (input, weight) if bias is None else (input, weight, bias)
    if input.dim() < 2 or not input.numel() or not all(map(_plain, given)):
        return torch.nn.functional.linear(input, weight, bias)
    return _product(input, weight, bias, "none", [], "")


def _plain(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.dtype is torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
    )


def _find_product() -> Any:
    # What torch.compile calls; PyTorch has no public name for it.
    return getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)


_product = _find_product()
