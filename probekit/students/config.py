"""Settings of finetuning: one dataclass, shared by supervisors, students and ceilings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from typing import Annotated, Any

from probekit.errors import UsageError, did_you_mean
from probekit.kinds import (
    COUNT,
    SEED,
    Choice,
    Flag,
    Listed,
    Maybe,
    Name,
    Number,
    SettingError,
    Settings,
    Text,
    Whole,
    shown,
)
from probekit.settings import configuration, from_mapping, within

__all__ = ["FinetuneConfig"]

# A head and adapters tolerate larger steps than a whole model.
FULL_RATE, ADAPTER_RATE = 5e-5, 2e-4
LABELLED = ("classify", "reward")


@configuration
class FinetuneConfig:
    """Settings of one training; names are those of transformers' TrainingArguments or shorter."""

    model: Annotated[str, Name("a model's name")]
    """Hub name or folder; may end in ``@layers=K``."""
    objective: Annotated[str, Choice("classify", "reward", "lm", "completion")] = "classify"
    """``classify``, ``reward`` (preference pairs), ``lm`` (texts) or ``completion``."""
    loss: Annotated[str, Text("a loss's name")] = "xent"
    """See :func:`probekit.students.losses.loss_names`."""
    loss_options: Annotated[Mapping[str, Any], Settings()] = field(default_factory=dict)
    """Options of the loss."""
    epochs: Annotated[float, Number(0, 1e6, above=True)] = 2.0
    """Passes over the rows."""
    max_steps: Annotated[int | None, Maybe(COUNT)] = None
    """Optimizer steps, instead of epochs."""
    lr: Annotated[float | None, Maybe(Number(0, 1e6, above=True))] = None
    """Peak learning rate; None: 5e-5, with LoRA 2e-4."""
    lr_schedule: Annotated[str, Choice("linear", "cosine", "constant", "constant_with_warmup")] = (
        "linear"
    )
    """Learning-rate schedule: linear, cosine, constant, constant_with_warmup."""
    warmup: Annotated[float, Number(0, 1e9)] = 0.0
    """Number of warm-up steps, or, below 1, a share of all steps."""
    weight_decay: Annotated[float, Number(0, 1e6)] = 0.0
    """Decoupled weight decay of AdamW."""
    adam_beta2: Annotated[float, Number(0, 1, below=True)] = 0.999
    """Decay of AdamW's second moment."""
    batch_size: Annotated[int, COUNT] = 32
    """Rows per forward pass and device."""
    grad_accum: Annotated[int, COUNT] = 1
    """Forward passes per optimizer step."""
    lora: Annotated[bool, Flag()] = False
    """Train low-rank adapters and the head only."""
    lora_rank: Annotated[int, Whole(1, 65_536)] = 8
    """Rank of the adapters."""
    lora_alpha: Annotated[int, Whole(1, 10**6)] = 8
    """Scale of the adapters, divided by the rank."""
    lora_dropout: Annotated[float, Number(0, 1, below=True)] = 0.0
    """Dropout before the adapters."""
    lora_modules: Annotated[
        Sequence[str] | None, Maybe(Listed(Text("a module's name"), least=1))
    ] = None
    """Names of modules to adapt; None: every linear layer of the blocks."""
    pool: Annotated[str, Choice("auto", "last", "first", "mean", "max")] = "auto"
    """Pooling: last, first, mean or max; ``auto`` as in ``probekit extract``."""
    max_length: Annotated[int | None, Maybe(COUNT)] = None
    """Maximum number of tokens per row; None: what tokenizer and model are made for."""
    dtype: Annotated[str, Choice("auto", "float32", "bfloat16")] = "auto"
    """``bfloat16``: mixed precision; ``auto``: that if GPU or CPU has instructions for it, else
    float32."""
    early_stop: Annotated[str | None, Maybe(Choice("log_loss", "accuracy", "auroc"))] = None
    """Keep the model that is best on held-out weak labels by log_loss, accuracy or auroc."""
    patience: Annotated[int | None, Maybe(COUNT)] = None
    """Stop after N evaluations without improvement; None: train to the end."""
    evals: Annotated[int, Whole(1, 100_000)] = 8
    """Number of evaluations during training, if there are rows to evaluate on."""
    eval_steps: Annotated[int | None, Maybe(COUNT)] = None
    """Evaluate every N optimizer steps, instead of ``evals`` times."""
    save_seconds: Annotated[float, Number(0, 1e9)] = 300.0
    """Seconds between checkpoints; an interrupted training resumes from the last one."""
    save: Annotated[str, Choice("model", "adapter", "none")] = "model"
    """``model``, ``adapter`` (LoRA without the base) or ``none``."""
    device: Annotated[str, Text("a device, auto or cpu,")] = "auto"
    """``auto`` or ``cpu``; use accelerate for several GPUs."""
    seed: Annotated[int, SEED] = 0
    """Seed of head, order of rows and dropout."""
    gradient_checkpointing: Annotated[bool, Flag()] = False
    """Recompute activations in the backward pass, to save memory."""
    revision: Annotated[str | None, Maybe(Text("a revision"))] = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: Annotated[bool, Flag()] = False
    """Run code that a checkpoint contains."""
    report_to: Annotated[str | None, Maybe(Text("a name such as wandb"))] = None
    """Where the Trainer logs: wandb, tensorboard, …; None: nowhere."""

    def __post_init__(self) -> None:
        """Raise UsageError for what is wrong whatever the model."""
        if self.save == "adapter" and not self.lora:
            raise UsageError("Only LoRA has an adapter to save; set save to model or none.")
        if self.device not in ("auto", "cpu"):
            raise UsageError(
                f"device is auto or cpu, not {self.device!r}; choose GPUs with "
                "CUDA_VISIBLE_DEVICES or accelerate launch."
            )
        if self.report_to not in (None, "none", "all"):
            _check_logger(str(self.report_to))
        if self.objective in LABELLED and (self.loss != "xent" or self.loss_options):
            from probekit.students.losses import check_loss

            try:
                check_loss(self.loss, self.loss_options)
            except SettingError as error:
                raise within(error, "loss_options") from None

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any], *, of: str = "") -> FinetuneConfig:
        """Build from settings by name; ``of`` is the run's field with the settings, for messages.

        Raises
        ------
        UsageError
            If a name is unknown (the nearest ones are given) or a value is not allowed.
        """
        try:
            return from_mapping(cls, content)
        except UsageError as error:
            if of:
                raise within(error, of) from None
            raise

    def every(self, steps: int) -> int:
        """Return the optimizer steps between evaluations in a training of ``steps``."""
        return self.eval_steps or max(1, math.ceil(steps / self.evals))

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""
        if self.lr is not None:
            return self.lr
        return ADAPTER_RATE if self.lora else FULL_RATE

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        content = asdict(self)
        # 0.1.0 had no such setting; its folders and steps are identified by hashes without it.
        if self.eval_steps is None:
            del content["eval_steps"]
        return content | {
            "loss_options": dict(self.loss_options),
            "lora_modules": None if self.lora_modules is None else list(self.lora_modules),
        }


def _check_logger(name: str) -> None:
    """Raise SettingError if the Trainer cannot log there; it would fail only after reading rows."""
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    if name not in INTEGRATION_TO_CALLBACK:
        raise SettingError(
            f" is one of {', '.join(sorted(INTEGRATION_TO_CALLBACK))}"
            f"{did_you_mean(name, INTEGRATION_TO_CALLBACK)}, got {shown(name)}.",
            ("report_to",),
        )
    get_installed: Any = get_available_reporting_integrations  # it has no types
    installed = get_installed()
    if name not in installed:
        raise SettingError(
            f" is {name}, which needs a package that is not installed; available here: "
            f"{', '.join(installed) or 'none'}.",
            ("report_to",),
        )
