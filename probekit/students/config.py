"""How a model is finetuned: one dataclass, shared by supervisors, students and ceilings."""

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

# A head and a few adapters bear larger steps than a whole model.
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
    """How the learning rate falls: linear, cosine, constant, constant_with_warmup."""
    warmup: Annotated[float, Number(0, 1e9)] = 0.0
    """Steps of rising learning rate, or, below 1, a share of all steps."""
    weight_decay: Annotated[float, Number(0, 1e6)] = 0.0
    """Decoupled weight decay of AdamW."""
    adam_beta2: Annotated[float, Number(0, 1, below=True)] = 0.999
    """Second moment's memory of AdamW."""
    batch_size: Annotated[int, COUNT] = 32
    """Rows per forward and device."""
    grad_accum: Annotated[int, COUNT] = 1
    """Forwards per optimizer step."""
    lora: Annotated[bool, Flag()] = False
    """Train low-rank adapters and the head only."""
    lora_rank: Annotated[int, Whole(1, 65_536)] = 8
    """Rank of the adapters."""
    lora_alpha: Annotated[int, Whole(1, 10**6)] = 8
    """Scale of the adapters, times 1 / rank."""
    lora_dropout: Annotated[float, Number(0, 1, below=True)] = 0.0
    """Dropout before the adapters."""
    lora_modules: Annotated[
        Sequence[str] | None, Maybe(Listed(Text("a module's name"), least=1))
    ] = None
    """Names of modules to adapt; None: every linear layer of the blocks."""
    pool: Annotated[str, Choice("auto", "last", "first", "mean", "max")] = "auto"
    """What the head reads: last, first, mean or max; ``auto`` as in ``probekit extract``."""
    max_length: Annotated[int | None, Maybe(COUNT)] = None
    """Tokens per row; None: what tokenizer and model are made for."""
    dtype: Annotated[str, Choice("auto", "float32", "bfloat16")] = "auto"
    """``bfloat16``: mixed precision; ``auto``: that where the GPU has it, else float32."""
    early_stop: Annotated[str | None, Maybe(Choice("log_loss", "accuracy", "auroc"))] = None
    """Keep the evaluation that is best on held-out weak labels: log_loss, accuracy or auroc."""
    patience: Annotated[int | None, Maybe(COUNT)] = None
    """Stop after N evaluations without improvement; None: train to the end."""
    evals: Annotated[int, Whole(1, 100_000)] = 8
    """Evaluations over the whole training, where there are rows to evaluate on."""
    eval_steps: Annotated[int | None, Maybe(COUNT)] = None
    """Evaluate every so many optimizer steps, instead of ``evals`` times."""
    save_seconds: Annotated[float, Number(0, 1e9)] = 300.0
    """A checkpoint at least this often, and the last one before a stop is gone on from."""
    save: Annotated[str, Choice("model", "adapter", "none")] = "model"
    """``model``, ``adapter`` (LoRA without the base) or ``none``."""
    device: Annotated[str, Text("a device, auto or cpu,")] = "auto"
    """``auto`` or ``cpu``; several GPUs are accelerate's."""
    seed: Annotated[int, SEED] = 0
    """Seed of head, order of rows and dropout."""
    gradient_checkpointing: Annotated[bool, Flag()] = False
    """Compute activations again in the backward pass, to save memory."""
    revision: Annotated[str | None, Maybe(Text("a revision"))] = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: Annotated[bool, Flag()] = False
    """Run code that a checkpoint brings."""
    report_to: Annotated[str | None, Maybe(Text("a name such as wandb"))] = None
    """Where the Trainer logs: wandb, tensorboard, …; None: nowhere."""

    def __post_init__(self) -> None:
        """Refuse what can be told to be wrong without a model."""
        if self.save == "adapter" and not self.lora:
            raise UsageError("Only LoRA has an adapter to save; take save model or none.")
        if self.device not in ("auto", "cpu"):
            raise UsageError(
                f"device is auto or cpu, not {self.device!r}; choose cards with "
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
        """Take settings by name; ``of`` is the field of a run that holds them, for messages.

        Raises
        ------
        UsageError
            For a name that is none, the nearest ones being named, and a value that is not allowed.
        """
        try:
            return from_mapping(cls, content)
        except UsageError as error:
            if of:
                raise within(error, of) from None
            raise

    def every(self, steps: int) -> int:
        """Optimizer steps from one evaluation to the next in a training of ``steps``."""
        return self.eval_steps or max(1, math.ceil(steps / self.evals))

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""
        if self.lr is not None:
            return self.lr
        return ADAPTER_RATE if self.lora else FULL_RATE

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        content = asdict(self)
        # 0.1.0 had no such setting, and its folders and steps are known by hashes of the others.
        if self.eval_steps is None:
            del content["eval_steps"]
        return content | {
            "loss_options": dict(self.loss_options),
            "lora_modules": None if self.lora_modules is None else list(self.lora_modules),
        }


def _check_logger(name: str) -> None:
    """Refuse what the Trainer cannot log to here, which it would say after the rows were read."""
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
    available: Any = get_available_reporting_integrations  # it has no types
    there = available()
    if name not in there:
        raise SettingError(
            f" is {name}, which needs a package that is not installed; here are "
            f"{', '.join(there) or 'none'}.",
            ("report_to",),
        )
