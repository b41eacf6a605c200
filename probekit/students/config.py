"""How a model is finetuned: one dataclass, shared by supervisors, students and ceilings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from probekit.errors import UsageError, did_you_mean

__all__ = ["FinetuneConfig"]

CHOICES: dict[str, tuple[str, ...]] = {
    "objective": ("classify", "reward", "lm", "completion"),
    "pool": ("auto", "last", "first", "mean", "max"),
    "dtype": ("auto", "float32", "bfloat16"),
    "save": ("model", "adapter", "none"),
    "early_stop": ("log_loss", "accuracy", "auroc"),
    "lr_schedule": ("linear", "cosine", "constant", "constant_with_warmup"),
}
# A head and a few adapters bear larger steps than a whole model.
FULL_RATE, ADAPTER_RATE = 5e-5, 2e-4


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of one training; names are those of transformers' TrainingArguments or shorter."""

    model: str
    """Hub name or folder; may end in ``@layers=K``."""
    objective: str = "classify"
    """``classify``, ``reward`` (preference pairs), ``lm`` (texts) or ``completion``."""
    loss: str = "xent"
    """See :func:`probekit.students.losses.loss_names`."""
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the loss."""
    epochs: float = 2.0
    """Passes over the rows."""
    max_steps: int | None = None
    """Optimizer steps, instead of epochs."""
    lr: float | None = None
    """Peak learning rate; None: 5e-5, with LoRA 2e-4."""
    lr_schedule: str = "linear"
    """How the learning rate falls: linear, cosine, constant, constant_with_warmup."""
    warmup: float = 0.0
    """Steps of rising learning rate, or, below 1, a share of all steps."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    adam_beta2: float = 0.999
    """Second moment's memory of AdamW."""
    batch_size: int = 32
    """Rows per forward and device."""
    grad_accum: int = 1
    """Forwards per optimizer step."""
    lora: bool = False
    """Train low-rank adapters and the head only."""
    lora_rank: int = 8
    """Rank of the adapters."""
    lora_alpha: int = 8
    """Scale of the adapters, times 1 / rank."""
    lora_dropout: float = 0.0
    """Dropout before the adapters."""
    lora_modules: Sequence[str] | None = None
    """Names of modules to adapt; None: every linear layer of the blocks."""
    pool: str = "auto"
    """What the head reads: last, first, mean or max; ``auto`` as in ``probekit extract``."""
    max_length: int | None = None
    """Tokens per row; None: what tokenizer and model are made for."""
    dtype: str = "auto"
    """``bfloat16``: mixed precision; ``auto``: that where the GPU has it, else float32."""
    early_stop: str | None = None
    """Keep the evaluation that is best on held-out weak labels: log_loss, accuracy or auroc."""
    patience: int | None = None
    """Stop after so many evaluations without a better one; None: train to the end."""
    evals: int = 8
    """Evaluations over the whole training, where there are rows to evaluate on."""
    save_seconds: float = 300.0
    """A checkpoint at least this often, and the last one before a stop is gone on from."""
    save: str = "model"
    """``model``, ``adapter`` (LoRA without the base) or ``none``."""
    device: str = "auto"
    """``auto`` or ``cpu``; several GPUs are accelerate's."""
    seed: int = 0
    """Seed of head, order of rows and dropout."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, to save memory."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run code that a checkpoint brings."""
    report_to: str | None = None
    """Where the Trainer logs: wandb, tensorboard, …; None: nowhere."""

    def __post_init__(self) -> None:
        """Refuse what can be told to be wrong without a model."""
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed and not (name == "early_stop" and value is None):
                raise UsageError(f"{name} is one of {', '.join(allowed)}, not {value!r}.")
        for name in ("batch_size", "grad_accum", "lora_rank", "evals", "max_steps", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is at least 1, not {value}.")
        if self.save_seconds < 0:
            raise UsageError(f"save_seconds is at least 0, not {self.save_seconds}.")
        if not self.epochs > 0:
            raise UsageError(f"epochs is above 0, not {self.epochs}.")
        if self.lr is not None and not self.lr > 0:
            raise UsageError(f"lr is above 0, not {self.lr}.")
        if self.save == "adapter" and not self.lora:
            raise UsageError("Only LoRA has an adapter to save; take save model or none.")
        if self.device not in ("auto", "cpu"):
            raise UsageError(
                f"device is auto or cpu, not {self.device!r}; choose cards with "
                "CUDA_VISIBLE_DEVICES or accelerate launch."
            )

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> FinetuneConfig:
        """Take settings by name.

        Raises
        ------
        UsageError
            For a name that is none; the nearest ones are named.
        """
        names = [each.name for each in fields(cls)]
        for name in content:
            if name not in names:
                raise UsageError(f"Finetuning has no setting {name!r}{did_you_mean(name, names)}.")
        try:
            return cls(**content)
        except TypeError as error:
            raise UsageError(f"A setting of finetuning has a wrong type: {error}.") from None

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""
        if self.lr is not None:
            return self.lr
        return ADAPTER_RATE if self.lora else FULL_RATE

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self) | {
            "loss_options": dict(self.loss_options),
            "lora_modules": None if self.lora_modules is None else list(self.lora_modules),
        }
