"""The number type in which a device computes, and why.

In bfloat16 a GPU, or a CPU with instructions for it, is faster; any other CPU emulates it, slowly.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from probekit.activations.loading import kind_of
from probekit.errors import DataError
from probekit.safe import read_bytes

CPU_INFO = Path("/proc/cpuinfo")
# Names of the instructions on x86 and ARM.
CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


class Precision(NamedTuple):
    """A number type, and why it is used."""

    dtype: str
    """``float32``, ``float16`` or ``bfloat16``."""
    reason: str

    def __str__(self) -> str:
        """Return a sentence."""
        return f"Computing in {self.dtype}: {self.reason}."


def has_bfloat16(device: str) -> tuple[bool, str]:
    """Return whether a device (``cpu``, ``cuda:0``, …) computes in bfloat16, and how one knows."""
    kind = kind_of(device)
    if kind == "cuda":
        if torch.cuda.is_bf16_supported():
            return True, "this GPU has bfloat16"
        return False, "this GPU has no bfloat16"
    if kind != "cpu":
        return False, f"bfloat16 is not known to be fast on {kind}"
    flags = _cpu_flags()
    known = [flag for flag in CPU_FLAGS if flag in flags]
    if known:
        return True, f"this CPU has bfloat16 instructions ({', '.join(known)})"
    return False, f"this CPU has no bfloat16 instructions ({', '.join(CPU_FLAGS[:2])})"


@cache
def _cpu_flags() -> frozenset[str]:
    """Return the CPU's features as Linux names them; none on other systems."""
    try:
        text = read_bytes(CPU_INFO).decode("ascii", "replace")
    except DataError:  # another system
        return frozenset()
    # "flags" on x86, "Features" on ARM.
    lists = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(" ".join(lists).split())


def training_precision(asked: str, device: str) -> Precision:
    """Choose how a training computes: ``bfloat16`` means mixed precision.

    ``asked`` is ``auto`` (bfloat16 if the device has it), ``float32`` or ``bfloat16``.
    """
    if asked != "auto":
        return Precision(asked, "as asked")
    fast, reason = has_bfloat16(device)
    return Precision("bfloat16" if fast else "float32", reason)


def extraction_precision(device: str, own: torch.dtype) -> Precision:
    """Choose how states are computed: never less exactly than ``own``, the checkpoint's dtype.

    It is that dtype, except that a CPU without instructions for half precision computes in float32.
    """
    name = str(own).removeprefix("torch.")
    fast, reason = has_bfloat16(device)
    if own not in (torch.float16, torch.bfloat16):
        hint = "; --dtype bfloat16 is faster and less exact" if fast else ""
        return Precision(name, f"the checkpoint is {name}, and {reason}{hint}")
    if kind_of(device) == "cpu" and not (fast and own is torch.bfloat16):
        return Precision("float32", f"the checkpoint is {name}, but {reason}")
    return Precision(name, f"the checkpoint is {name}, and {reason}")
