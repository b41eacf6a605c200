"""Take pooled states out of a running model, layer by layer, and stop it after the deepest one.

In transformers, hidden_states[i] is the input of block i for i < L, and hidden_states[L] the base
model's output, after the final norm. So a hook before block i returns layer i, for pre-norm and
post-norm models alike, and the hook of the deepest layer can end the forward pass. Whether this
holds for a model is checked once, on three tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from probekit.errors import ModelError

Tensor: TypeAlias = torch.Tensor
Pooler: TypeAlias = Callable[[Tensor, "Tensor | None"], Tensor]

# What a model raises if it cannot run on these inputs, or with some of its blocks removed.
CANNOT_RUN = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class _Stop(Exception):  # noqa: N818 (not an error: it ends a forward pass that has its states)
    """The deepest layer requested was reached."""


def find_blocks(root: torch.nn.Module, depth: int) -> torch.nn.ModuleList | None:
    """Return the only outermost list of ``depth`` distinct blocks, or None."""
    lists: list[tuple[str, torch.nn.ModuleList]] = []
    for name, module in root.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer, _ in lists)
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth and not inner:
            lists.append((name, module))
    if len(lists) > 1:
        # A text model beside a tower for images or sound.
        lists = [f for f in lists if "language_model" in f[0]] or lists
    if len(lists) != 1 or len(set(map(id, lists[0][1]))) != depth:
        return None
    return lists[0][1]


class Tap:
    """A model that returns pooled states of the requested layers and runs no further.

    ``root`` is a base model or encoder of ``depth`` blocks, without a head, in evaluation mode.
    ``take`` pools: from a layer's states (b, s, d) and the mask of real tokens to what is kept.
    ``blocks`` are the model's, at least up to the deepest layer; None: every block runs, and the
    states come from ``output_hidden_states``.
    """

    def __init__(
        self,
        root: torch.nn.Module,
        layers: Sequence[int],
        *,
        depth: int,
        take: Pooler,
        blocks: torch.nn.ModuleList | None,
    ) -> None:
        self.root = root
        self.layers = tuple(layers)
        self.depth = depth
        self.take = take
        self._blocks = blocks
        self._accepts = set(inspect.signature(root.forward).parameters)
        self._states: dict[int, Tensor] = {}
        self._mask: Tensor | None = None
        self._hooks = [
            blocks[layer].register_forward_pre_hook(self._hook(layer), with_kwargs=True)
            for layer in self.layers
            if blocks is not None and layer < depth
        ]

    def __call__(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        *,
        types: Tensor | None = None,
    ) -> dict[int, Tensor]:
        """Run ids (b, s) with their mask (b, s) of real tokens; return pooled states by layer."""
        self._states, self._mask = {}, mask
        inputs: dict[str, Any] = {"input_ids": ids, "return_dict": True}
        if mask is not None:
            inputs["attention_mask"] = mask.long()
        if types is not None and "token_type_ids" in self._accepts:
            inputs["token_type_ids"] = types
        if "use_cache" in self._accepts:
            inputs["use_cache"] = False
        try:
            with torch.inference_mode():
                self._run(inputs)
        except _Stop:
            pass
        finally:
            states, self._states, self._mask = self._states, {}, None
        return states

    def remove(self) -> None:
        """Remove the hooks from the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _run(self, inputs: Mapping[str, Any]) -> None:
        if self._blocks is not None:
            result = self.root(**inputs)
            if self.depth in self.layers:
                last = getattr(result, "last_hidden_state", None)
                self._keep(self.depth, result[0] if last is None else last)
            return
        states = _all_states(self.root(**inputs, output_hidden_states=True))
        if states is None:
            raise ModelError(f"{type(self.root).__name__} returns no hidden_states.")
        for layer in self.layers:
            self._keep(layer, states[layer])

    def _hook(self, layer: int) -> Callable[..., None]:
        def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            self._keep(layer, states)
            if layer == self.layers[-1]:
                raise _Stop

        return hook

    def _keep(self, layer: int, states: Tensor) -> None:
        mask = self._mask
        if mask is not None and mask.device != states.device:
            mask = mask.to(states.device)
        # Pooled at once: later blocks may write into these states, and pooled ones are small.
        self._states[layer] = self.take(states, mask)


def _all_states(result: Any) -> tuple[Tensor, ...] | None:
    """Return hidden states of all layers, the last after the final norm; None without any.

    If ``tie_last_hidden_states`` is off, the last one of transformers is before that norm.
    """
    states: tuple[Tensor, ...] | None = result.hidden_states
    last = getattr(result, "last_hidden_state", None)
    if not states or last is None or last.shape != states[-1].shape:
        return states
    return (*states[:-1], last)


def _plain(root: torch.nn.Module) -> tuple[Tensor, ...] | None:
    """Return all hidden states of three tokens; no cache, which some hybrid models cannot fill."""
    arguments: dict[str, Any] = {"output_hidden_states": True, "return_dict": True}
    if "use_cache" in inspect.signature(root.forward).parameters:
        arguments["use_cache"] = False
    with torch.inference_mode():
        return _all_states(root(input_ids=_three_tokens(root), **arguments))


def tapped_states(
    root: torch.nn.Module, layers: Sequence[int], depth: int, blocks: torch.nn.ModuleList
) -> dict[int, Tensor] | None:
    """Return states (1, 3, d) of three tokens by hooks; None unless they equal hidden_states.

    ``blocks`` may be cut, but must include the block whose input is the deepest layer.
    """
    tap = Tap(root, layers, depth=depth, take=lambda states, _: states.clone(), blocks=blocks)
    ids = _three_tokens(root)
    try:
        hooked = tap(ids)
        tap.remove()
        plain = _plain(root)
    except torch.cuda.OutOfMemoryError:
        raise
    except CANNOT_RUN:
        return None
    finally:
        tap.remove()
    for layer in layers:
        if layer not in hooked or plain is None or len(plain) <= layer:
            return None
        if hooked[layer].ndim != 3 or not _same(hooked[layer], plain[layer]):
            return None
    return hooked


def plain_states(root: torch.nn.Module, depth: int) -> dict[int, Tensor]:
    """Return states (1, 3, d) of all layers for three tokens, by ``output_hidden_states``.

    Raises ModelError if the model returns no states, or not one per token and layer.
    """
    try:
        states = _plain(root)
    except torch.cuda.OutOfMemoryError:
        raise
    except CANNOT_RUN as error:
        raise ModelError(
            f"{type(root).__name__} does not run on text alone: "
            f"{' '.join(str(error).split()).rstrip('.')}."
        ) from error
    if (
        states is None
        or len(states) != depth + 1
        or any(s.shape[:2] != (1, 3) or s.ndim != 3 for s in states)
    ):
        shapes = "none" if states is None else [tuple(each.shape) for each in states]
        raise ModelError(
            f"{type(root).__name__} does not return one state per token and layer: for 3 tokens "
            f"and {depth} blocks its hidden_states are {shapes}."
        )
    return dict(enumerate(states))


def vocabulary_of(root: torch.nn.Module) -> int:
    """Return the number of token embeddings.

    Raises ModelError if the model does not read token ids.
    """
    try:
        embeddings: Any = root.get_input_embeddings()  # type: ignore[operator]
        rows, _ = embeddings.weight.shape
    except CANNOT_RUN as error:
        raise ModelError(
            f"{type(root).__name__} has no token embeddings, so it does not read text as tokens; "
            "give a text model (of a model that also reads images or sound, its text model alone)."
        ) from error
    return int(rows)


def _three_tokens(root: torch.nn.Module) -> Tensor:
    vocabulary = vocabulary_of(root)
    device = next((p.device for p in root.parameters() if p.device.type != "meta"), None)
    return torch.tensor([[i % vocabulary for i in (5, 7, 6)]], device=device or "meta")


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.float(), b.float().to(a.device)
    # The same operations on the same numbers: equal up to nondeterministic kernels.
    scale = float(b.abs().nan_to_num(posinf=0).max())
    return torch.allclose(a, b, rtol=1e-2, atol=1e-2 * scale, equal_nan=True)


def release(root: torch.nn.Module, block: torch.nn.Module) -> None:
    """Free the weights of a block that never runs, except those that other modules share."""
    own = set(block.modules())
    kept = {id(p) for m in root.modules() if m not in own for p in m._parameters.values()}
    for module in own:
        for value in [*module._parameters.values(), *module._buffers.values()]:
            if value is not None and id(value) not in kept:
                value.data = value.data.new_empty(0)


def pool_last(states: Tensor, mask: Tensor | None) -> Tensor:
    """State of the last real token, wherever the padding is."""
    if mask is None:
        return states[:, -1].clone()  # a view would keep all tokens' states in memory
    width = mask.shape[1]
    return _take(states, width - 1 - mask.flip(1).int().argmax(1))


def pool_first(states: Tensor, mask: Tensor | None) -> Tensor:
    """State of the first real token."""
    return states[:, 0].clone() if mask is None else _take(states, mask.int().argmax(1))


def pool_mean(states: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real tokens, special ones included (as sentence-transformers does), float32."""
    if mask is None:
        return states.mean(1, dtype=torch.float32)
    # Filled, not multiplied: states of padding may be inf or NaN.
    filled = states.masked_fill(~mask[:, :, None], 0)
    return filled.sum(1, dtype=torch.float32) / mask.sum(1, dtype=torch.float32)[:, None]


def pool_max(states: Tensor, mask: Tensor | None) -> Tensor:
    """Largest value of each dimension over the real tokens."""
    if mask is not None:
        states = states.masked_fill(~mask[:, :, None], float("-inf"))
    return states.amax(1)


def _take(states: Tensor, position: Tensor) -> Tensor:
    return states[torch.arange(len(states), device=states.device), position]


# From states (b, s, d) and the boolean mask of real tokens (b, s), None without padding, to (b, d).
POOLERS: dict[str, Pooler] = {
    "first": pool_first,
    "last": pool_last,
    "max": pool_max,
    "mean": pool_mean,
}
