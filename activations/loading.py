"""Load as much of a model as the requested layers need, and hook into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from probekit.activations.checkpoint import Checkpoint, text_root, why
from probekit.activations.hooks import (
    Pooler,
    Tap,
    find_blocks,
    plain_states,
    release,
    tapped_states,
)
from probekit.activations.quiet import quiet
from probekit.errors import ModelError, UsageError


@dataclass(frozen=True)
class Placement:
    """Where a model's weights are loaded, and how they are quantised."""

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``, or ``map``: accelerate spreads them."""
    quantization: dict[str, Any] | None = None
    """Arguments of transformers' BitsAndBytesConfig; None: weights stay as they are stored."""


def resolve_device(device: str) -> str:
    """Resolve ``auto`` to a device; raises UsageError if the device does not exist here."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda:0"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if device in ("cpu", "map") or (device == "mps" and torch.backends.mps.is_available()):
        return device
    if kind == "cuda" and (number.isdigit() or not _):
        count = torch.cuda.device_count()
        if int(number or 0) < count:
            return f"cuda:{number or 0}"
        raise UsageError(f"There is no device {device!r} here; CUDA devices: {count}.")
    raise UsageError(
        f"There is no device {device!r} here; allowed are auto, cpu, cuda, cuda:N, mps and map."
    )


def kind_of(device: str) -> str:
    """Return ``cpu``, ``cuda`` or ``mps`` for a resolved device; ``map`` uses the best."""
    if device == "map":
        device = resolve_device("auto")
    return device.partition(":")[0]


@contextmanager
def tapped(
    checkpoint: Checkpoint, layers: Sequence[int], take: Pooler, placement: Placement
) -> Iterator[Tap]:
    """Load a model up to the deepest layer and yield it with hooks on its layers.

    A model that the caller has loaded is left as it was.

    Raises ModelError if weights are missing, damaged or too large for memory, or the model returns
    no states.
    """
    root, blocks = checkpoint.root, None
    if not checkpoint.loaded:
        with quiet():
            root, blocks = _load_and_check(checkpoint, layers, placement)
    training = root.training
    tap = None
    try:
        root.eval()
        if checkpoint.loaded:
            with quiet():
                blocks = _check_loaded(checkpoint, layers)
        tap = Tap(root, layers, depth=checkpoint.depth, take=take, blocks=blocks)
        yield tap
    finally:
        if tap is not None:
            tap.remove()
        root.train(training)


def _check_loaded(checkpoint: Checkpoint, layers: Sequence[int]) -> torch.nn.ModuleList | None:
    """Return the blocks to hook into; None: the model's own output is used."""
    root, depth = checkpoint.root, checkpoint.depth
    blocks = find_blocks(root, depth)
    if blocks is not None and tapped_states(root, layers, depth, blocks) is not None:
        return blocks
    plain_states(root, depth)
    return None


def _load_and_check(
    checkpoint: Checkpoint, layers: Sequence[int], placement: Placement
) -> tuple[torch.nn.Module, torch.nn.ModuleList | None]:
    depth, deepest = checkpoint.depth, max(layers)
    keep = min(deepest + 1, depth)
    if find_blocks(checkpoint.root, depth) is not None:
        root = text_root(_load(checkpoint, placement, keep=keep), checkpoint.config)
        blocks = find_blocks(root, keep)
        states = None if blocks is None else tapped_states(root, layers, depth, blocks)
        if blocks is not None and states is not None:
            _check_widths(checkpoint, states)
            if deepest < depth:
                release(root, blocks[deepest])
            return root, blocks
        del root, blocks
    # No list of blocks, or their inputs are not the hidden states: use the model's own output.
    root = text_root(_load(checkpoint, placement, keep=depth), checkpoint.config)
    states = plain_states(root, depth)
    _check_widths(checkpoint, {layer: states[layer] for layer in layers})
    return root, None


def _load(checkpoint: Checkpoint, placement: Placement, *, keep: int) -> Any:
    """Load a model without its blocks from ``keep`` on, which are not even read from disk."""
    options = checkpoint.loading_options(checkpoint.dtype)
    device = placement.device
    options["device_map"] = {"map": "auto", "cpu": None}.get(device, {"": device})
    if placement.quantization is not None:
        options["quantization_config"] = _quantization(placement)
    try:
        model, info = _shortened(checkpoint, keep).from_pretrained(checkpoint.name, **options)
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        raise ModelError(
            f"The model {checkpoint.label} does not fit into the memory of {placement.device}; "
            "take fewer layers, a smaller dtype, --load-in 8bit or 4bit, or --device map."
        ) from error
    except (
        Exception
    ) as error:  # safetensors, accelerate, quantisers and the hub raise types of their own
        raise ModelError(f"The model {checkpoint.label} cannot be loaded: {why(error)}") from error
    checkpoint.check_complete(info)
    return model.eval().requires_grad_(False)


def _shortened(checkpoint: Checkpoint, keep: int) -> Any:
    """Return the model's class with a constructor that drops the blocks from ``keep`` on.

    The configuration stays whole: some models compute with their full depth.
    """
    whole: Any = type(checkpoint.skeleton)
    depth, full_config = checkpoint.depth, checkpoint.config

    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        whole.__init__(self, config, *args, **kwargs)
        blocks = find_blocks(text_root(self, full_config), depth)
        if blocks is not None:
            del blocks[keep:]

    return type(whole.__name__, (whole,), {"__init__": init, "__module__": whole.__module__})


def _quantization(placement: Placement) -> Any:
    import importlib.util

    import transformers

    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            "Quantised loading needs the package bitsandbytes, which is not installed; "
            "pip install bitsandbytes."
        )
    try:
        make: Any = transformers.BitsAndBytesConfig
        return make(**(placement.quantization or {}))
    except (TypeError, ValueError) as error:
        raise UsageError(f"The quantisation cannot be used: {why(error)}") from None


def _check_widths(checkpoint: Checkpoint, states: Mapping[int, torch.Tensor]) -> None:
    """Raise ModelError if the states do not have the widths that the store was created for."""
    for layer, layer_states in states.items():
        if layer_states.shape[-1] != checkpoint.widths[layer]:
            raise ModelError(
                f"Layer {layer} of {checkpoint.label} is {layer_states.shape[-1]} wide, not "
                f"{checkpoint.widths[layer]} as in its configuration."
            )


def input_device(root: torch.nn.Module) -> torch.device:
    """Return the device that token ids must be on."""
    devices = (p.device for p in root.parameters() if p.device.type != "meta" and p.numel())
    return next(devices, torch.device("cpu"))
