"""A pretrained backbone with a linear head on its pooled state, and the rows that it reads."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from probekit.activations.batching import Buckets, Encoded, pad
from probekit.activations.checkpoint import Checkpoint, text_root, why
from probekit.activations.encoding import Encoder
from probekit.activations.hooks import POOLERS, Pooler
from probekit.activations.quiet import quiet
from probekit.data import Content
from probekit.errors import DataError, ModelError, UsageError
from probekit.extras import need
from probekit.files import atomic_write
from probekit.safe import expand, misfit, read_json
from probekit.students.config import FinetuneConfig
from probekit.students.folder import new_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Classifier",
    "HeadInfo",
    "TokenRows",
    "collate",
    "encode_rows",
    "load_backbone",
    "make_classifier",
    "read_head",
    "save_classifier",
    "with_adapters",
]

HEAD, HEAD_WEIGHTS = "classifier.json", "classifier.safetensors"
# Small, so that training starts near even odds; not 0, so that the classes' weights differ.
HEAD_SPREAD = 0.01


@dataclass(frozen=True)
class HeadInfo:
    """Description of a saved classifier's head, beside its weights."""

    classes: tuple[str, ...]
    pool: str
    objective: str
    max_length: int | None = None
    """Tokens per row in training; None: what tokenizer and model are made for."""


class Classifier(torch.nn.Module):
    """Logits from token ids: backbone, pooling over real tokens, linear head in float32.

    With the objective ``reward`` the head has one output, and the rows of a batch come in pairs:
    first and second completion. Their two scores are the logits, so that softmax is σ(s₂ − s₁).
    """

    def __init__(
        self, backbone: Any, take: Pooler, *, width: int, n_classes: int, reward: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        # In a list, so that torch does not register it again: it is part of the backbone.
        self._reader = [reader_of(backbone)]
        self.reward = reward
        self._take = take
        self.head = torch.nn.Linear(width, 1 if reward else n_classes, bias=not reward)
        torch.nn.init.normal_(self.head.weight, std=HEAD_SPREAD / width**0.5)
        if not reward:
            torch.nn.init.zeros_(self.head.bias)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (B, C) of token ids (B, s); of pairs (2B, s) with the objective ``reward``."""
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self._reader[0](
            input_ids=input_ids, attention_mask=attention_mask, **more
        ).last_hidden_state
        pooled = self._take(states, attention_mask.bool())
        # Mixed precision would round the logits.
        with torch.autocast(pooled.device.type, enabled=False):
            logits: torch.Tensor = self.head(pooled.float())
        return logits.view(-1, 2) if self.reward else logits

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Enable gradient checkpointing in the backbone; the Trainer calls this."""
        self.backbone.gradient_checkpointing_enable(**options)


def load_backbone(checkpoint: Checkpoint, config: FinetuneConfig) -> Any:
    """Load the part of a model that reads text, ready to be trained.

    In float32, as steps are small; a frozen base under adapters keeps its own dtype.

    Raises
    ------
    ModelError
        If weights are missing or damaged, or no layer fits the adapters.
    """
    auto: Any = type(checkpoint.skeleton)
    options = checkpoint.loading_options(checkpoint.dtype if config.lora else torch.float32)
    with quiet():
        try:
            model, info = auto.from_pretrained(checkpoint.name, **options)
        except Exception as error:  # safetensors, accelerate and the hub raise types of their own
            raise ModelError(f"{checkpoint.label} cannot be loaded: {why(error)}") from error
    checkpoint.check_complete(info)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    if config.lora:
        model = with_adapters(model, checkpoint, config)
    # The head does not read poolers and decoders; trainable but unused weights would stop DDP.
    read = {id(p) for n, p in reader_of(model).named_parameters() if "pooler" not in n}
    for parameter in model.parameters():
        if id(parameter) not in read:
            parameter.requires_grad_(False)
    return model


def reader_of(backbone: Any) -> torch.nn.Module:
    """Return the part of a backbone, with adapters or without, that reads text."""
    base = backbone.get_base_model() if hasattr(backbone, "peft_config") else backbone
    return text_root(base, base.config)


def with_adapters(backbone: Any, checkpoint: Checkpoint, config: FinetuneConfig) -> Any:
    """Freeze the backbone and add low-rank adapters, drawn with the configuration's seed.

    Hu et al. 2021, https://arxiv.org/abs/2106.09685.
    """
    need("peft")
    from peft import LoraConfig, get_peft_model

    modules = list(config.lora_modules) if config.lora_modules else linear_names(backbone)
    adapter = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=modules,
    )
    try:
        if not modules:
            raise ValueError("it has no linear layer")
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model: Any = get_peft_model(backbone, adapter)
    except ValueError as error:
        named = {name.rsplit(".", 1)[-1] for name, _ in _linear_layers(backbone)}
        raise ModelError(
            f"LoRA finds no module to adapt in {checkpoint.label} "
            f"({', '.join(modules) or why(error)}); its linear layers are called "
            f"{', '.join(sorted(named)) or 'nothing: it has none'}."
        ) from None
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def linear_names(backbone: Any) -> list[str]:
    """Return the last names of the linear layers inside the blocks, whatever the architecture."""
    return sorted({name.rsplit(".", 1)[-1] for name, _ in _linear_layers(backbone)})


def _linear_layers(backbone: Any) -> list[tuple[str, Any]]:
    from transformers.pytorch_utils import Conv1D

    return [
        (name, module)
        for name, module in backbone.named_modules()
        # Layers of the blocks are in a numbered list; embeddings' projections and poolers are not.
        if isinstance(module, torch.nn.Linear | Conv1D)
        and any(part.isdigit() for part in name.split("."))
    ]


def make_classifier(
    checkpoint: Checkpoint, config: FinetuneConfig, classes: Sequence[str]
) -> tuple[Classifier, HeadInfo]:
    """Load a backbone and give it a new head, drawn with the configuration's seed."""
    pool = checkpoint.default_pool if config.pool == "auto" else config.pool
    with torch.random.fork_rng(devices=[]):
        # Also weights that a checkpoint lacks, an unused pooler, are then the same every time.
        torch.manual_seed(config.seed)
        backbone = load_backbone(checkpoint, config)
        torch.manual_seed(config.seed)
        model = Classifier(
            backbone,
            POOLERS[pool],
            width=checkpoint.widths[checkpoint.depth],
            n_classes=len(classes),
            reward=config.objective == "reward",
        )
    length = checkpoint.length(config.max_length)
    return model, HeadInfo(tuple(classes), pool, config.objective, length)


def save_classifier(
    model: Classifier, info: HeadInfo, checkpoint: Checkpoint, folder: Path, *, adapter: bool
) -> None:
    """Write backbone, tokenizer and head; ``extract`` and ``finetune`` read the folder as a model.

    Adapters are merged into the backbone, or written alone.
    """
    backbone = model.backbone
    with new_model(folder, model) as beside, quiet():
        if not adapter and hasattr(backbone, "merge_and_unload"):
            backbone = backbone.merge_and_unload()
        if not adapter:
            # As it was: some models change their configuration when they are built.
            backbone.config = copy.deepcopy(checkpoint.config)
            backbone = backbone.to(checkpoint.dtype)
        backbone.save_pretrained(beside)
        checkpoint.tokenizer.save_pretrained(beside)
        head = {
            name: value.detach().cpu().contiguous() for name, value in model.head.named_parameters()
        }
        save_file(head, beside / HEAD_WEIGHTS)
        content = {**asdict(info), "classes": list(info.classes)}
        with atomic_write(beside / HEAD, "w") as file:
            file.write(json.dumps(content, ensure_ascii=False) + "\n")


def read_head(folder: Path) -> tuple[HeadInfo, dict[str, torch.Tensor]]:
    """Read the head of a saved classifier.

    Raises
    ------
    UsageError
        If the folder does not hold a classifier.
    """
    folder = expand(folder, error=ModelError)
    if not ((folder / HEAD).is_file() and (folder / HEAD_WEIGHTS).is_file()):
        raise UsageError(
            f"{folder} holds no classifier; give the folder `model` that `probekit finetune` wrote."
        )
    content = read_json(folder / HEAD, error=ModelError)
    shape = {"classes": [str], "pool": str, "objective": str}
    wrong = misfit(content, shape, "its description")
    if wrong is None and content["pool"] not in POOLERS:
        wrong = f"it is pooled by {content['pool']!r}"
    if wrong:
        raise ModelError(f"The classifier in {folder} is damaged: {wrong}; train it again.")
    length = content.get("max_length")  # 0.1.0 did not store it
    if not (length is None or (type(length) is int and length > 0)):
        raise ModelError(
            f"The classifier in {folder} is damaged: its max_length is {length!r}; train it again."
        )
    info = HeadInfo(tuple(content["classes"]), content["pool"], content["objective"], length)
    try:
        return info, load_file(folder / HEAD_WEIGHTS)
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(f"The classifier in {folder} is damaged: {why(error)}") from None


class TokenRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows as token ids, with their targets and weights.

    Items have ``input_ids`` (the Trainer groups rows by their length), for pairs of completions
    those of both, and, if given, ``targets`` (C,) and ``weight``. ``truncated`` is the number of
    rows with more tokens than are read.
    """

    def __init__(
        self,
        parts: Sequence[Encoded],
        Y: NDArray[np.float64] | None,
        weight: NDArray[np.float64] | None,
    ) -> None:
        self.parts = parts
        self._targets = None if Y is None else Y.astype(np.float32)
        self._weight = None if weight is None else weight.astype(np.float32)
        self.lengths = np.max([part.lengths for part in parts], axis=0)
        self.truncated = int(np.any([part.truncated for part in parts], axis=0).sum())

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # A range instead of the ids: the Trainer asks only for their number.
        item: dict[str, Any] = {"input_ids": range(int(self.lengths[index])), "position": index}
        item["rows"] = self
        if self._targets is not None:
            item["targets"] = self._targets[index]
        if self._weight is not None:
            item["weight"] = self._weight[index]
        return item


def encode_rows(
    checkpoint: Checkpoint,
    contents: Sequence[Content],
    ids: Sequence[str],
    *,
    kind: str,
    max_length: int | None,
    reward: bool = False,
    Y: NDArray[np.float64] | None = None,
    weight: NDArray[np.float64] | None = None,
) -> TokenRows:
    """Encode n rows as ``probekit extract`` does; with ``reward`` each text of a pair alone.

    Raises
    ------
    DataError
        If the objective is reward and the rows are not pairs.
    """
    if not reward:
        texts: list[list[Content]] = [list(contents)]
    elif kind == "pair":
        texts = [[str(pair[side]) for pair in contents] for side in (0, 1)]
        kind = "text"
    else:
        raise DataError(
            f"Reward modelling compares two texts, in columns text and text_pair; these rows are "
            f"of kind {kind}."
        )
    encoder = Encoder(checkpoint.tokenizer, kind=kind, max_length=checkpoint.length(max_length))
    return TokenRows([encoder.encode(part, ids) for part in texts], Y, weight)


def collate(
    items: Sequence[dict[str, Any]],
    pad_id: int,
    buckets: Buckets | None = None,
) -> dict[str, torch.Tensor]:
    """Pad rows on the right; the two texts of a pair are consecutive rows of the batch.

    ``buckets``: to one of few lengths.
    """
    rows: TokenRows = items[0]["rows"]
    positions = np.array([item["position"] for item in items])
    sides = [pad(part, positions, pad_id=pad_id) for part in rows.parts]
    width = max(ids.shape[1] for ids, _, _ in sides)
    width = width if buckets is None else buckets.width(width)

    def padded(arrays: Sequence[Any], filler: int) -> torch.Tensor:
        wide = [
            np.pad(
                array.astype(np.int64),
                ((0, 0), (0, width - array.shape[1])),
                constant_values=filler,
            )
            for array in arrays
        ]
        return torch.from_numpy(np.stack(wide, axis=1).reshape(-1, width))

    batch = {
        "input_ids": padded([ids for ids, _, _ in sides], pad_id),
        "attention_mask": padded(
            [np.ones_like(ids) if mask is None else mask for ids, mask, _ in sides], 0
        ),
    }
    if any(types is not None for _, _, types in sides):
        batch["token_type_ids"] = padded(
            [np.zeros_like(ids) if types is None else types for ids, _, types in sides], 0
        )
    for name in ("targets", "weight"):
        if name in items[0]:
            batch[name] = torch.from_numpy(np.stack([item[name] for item in items]))
    return batch
