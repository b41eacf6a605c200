"""The configuration of an experiment: one dataclass, one YAML file that repeats it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from probekit.errors import UsageError, did_you_mean
from probekit.files import atomic_write
from probekit.kinds import (
    ACTION_KINDS,
    FLAG,
    SEED,
    Choice,
    Flag,
    Kind,
    Layers,
    Listed,
    Maybe,
    Name,
    Number,
    SettingError,
    Settings,
    Whole,
    check_names,
    checked,
)
from probekit.probes.registry import PUBLISHED, parameter_kinds, probe_names
from probekit.settings import (
    configuration,
    from_mapping,
    in_file,
    read_settings,
    within,
)

__all__ = [
    "ACTIONS",
    "BAG_OF_WORDS",
    "FINETUNE",
    "STUDENTS",
    "RunConfig",
    "read_config",
    "write_config",
]

# Name of an action -> function of probekit.cleaning and its arguments.
ACTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "filter": ("filter", {}),
    "relabel": ("relabel", {}),
    "relabel-hard": ("relabel", {"hard": True}),
}
# A weak supervisor without a pretrained model: scikit-learn's word counts and logistic regression.
BAG_OF_WORDS = "bag-of-words"
FINETUNE = "finetune"
# Linear student -> parameters of its logistic probe. The first chooses its penalty out of fold on
# the labels that it trains on; the second fits wrong labels too, as large networks do.
STUDENTS: dict[str, dict[str, Any]] = {"linear": {}, "memorising": {"l2": 1e-5}}
# Fields that need a finetuned student, and their defaults.
FINETUNED_ONLY = {"losses": ("xent",), "rounds": 1, "curves": False, "chain": ()}
# Settings of a training that a run sets itself, and the field that decides each.
OF_THE_RUN = {
    "model": "weak and strong",
    "objective": "task",
    "loss": "losses",
    "loss_options": "loss_options of the run",
    "seed": "seeds",
}
# Arguments of an extraction that a run sets itself.
NOT_EXTRACTED = (
    "rows",
    "model",
    "output",
    "layers",
    "overwrite",
    "limit",
    "flush_rows",
    "group_column",
)
SEVERAL, MODELS = Listed(Name("a name"), alone=True), Listed(Name("a model's name"), alone=True)
ROWS = Maybe(Whole(4))


@configuration
class RunConfig:
    """Everything that decides the result of ``probekit run``."""

    command: ClassVar[str] = "run"

    task: Annotated[Sequence[str], SEVERAL]
    """Tasks, or files of rows with a column label; one experiment each."""
    weak: Annotated[Sequence[str], MODELS] = ()
    """Weak supervisors' models; ``bag-of-words``: logistic regression on word counts."""
    weak_labels: Annotated[str | None, Maybe(Name("a file of labels"))] = None
    """File of weak labels, instead of a weak supervisor: id and label, prob or probs."""
    strong: Annotated[Sequence[str], MODELS] = ()
    """Students' models; every pair of a weak and a strong one is run."""
    student: Annotated[Sequence[str], Listed(Choice(FINETUNE, *STUDENTS), alone=True, least=1)] = (
        FINETUNE,
    )
    """``finetune``, or a logistic probe on the strong model's frozen states: ``linear``
    (regularised) or ``memorising``; of several each has a table of its own."""
    group_column: Annotated[str | None, Maybe(Name("a column's name"))] = None
    """Column of the group of a row (a question, user); a group is dealt to one part."""
    seeds: Annotated[Sequence[int], Listed(SEED, alone=True)] = (0,)
    """Seeds of the split, of initialisation and of the order of rows; one repetition each."""
    supervisor_rows: Annotated[int | None, ROWS] = None
    """Maximum number of rows with ground truth for the supervisor; None: its half."""
    trusted_rows: Annotated[int | None, ROWS] = None
    """Number of these that the supervisor labels instead of learning from them: they join the
    student's rows, and probes know their ground truth (see ``filter_labels``' ``trusted``)."""
    student_rows: Annotated[int | None, ROWS] = None
    """Maximum number of rows with weak labels for the student; None: its half."""
    test_rows: Annotated[int | None, ROWS] = None
    """Maximum number of test rows."""
    validation_share: Annotated[float, Number(0, 1, below=True)] = 0.1
    """Share of the student's rows held out, with weak labels, for early stopping."""
    validation_rows: Annotated[int | None, ROWS] = None
    """Number of rows held out, besides ``student_rows``, instead of that share."""
    weak_on: Annotated[str, Choice("heldout", "train")] = "heldout"
    """``heldout``: the supervisor labels rows it has not seen; ``train``: its own."""
    losses: Annotated[Sequence[str], SEVERAL] = ("xent",)
    """Losses of the students on plain weak labels; all other students use the first."""
    loss_options: Annotated[Mapping[str, Mapping[str, Any]], Settings()] = field(
        default_factory=dict
    )
    """Options by loss."""
    probes: Annotated[Sequence[str], SEVERAL] = PUBLISHED
    """Probes that clean the weak labels."""
    probe_options: Annotated[Mapping[str, Mapping[str, Any]], Settings()] = field(
        default_factory=dict
    )
    """Parameters by probe."""
    layer: Annotated[str | int, Layers()] = "mid"
    """Layer of the strong model that the probes read; the ensemble chooses several itself."""
    actions: Annotated[Sequence[str], SEVERAL] = ("filter", "relabel")
    """Uses of each probe: filter, relabel (soft), relabel-hard."""
    action_options: Annotated[Mapping[str, Mapping[str, Any]], Settings()] = field(
        default_factory=dict
    )
    """Arguments by action."""
    linear_students: Annotated[bool, Flag()] = True
    """Also score the probes themselves as students."""
    random_drops: Annotated[int, Whole(0, 1000)] = 1
    """Number of random drops per size of filter, with one student each."""
    finetune: Annotated[Mapping[str, Any], Settings()] = field(default_factory=dict)
    """Settings of finetuning, for all models."""
    weak_finetune: Annotated[Mapping[str, Any], Settings()] = field(default_factory=dict)
    """Settings for weak supervisors, over ``finetune``."""
    strong_finetune: Annotated[Mapping[str, Any], Settings()] = field(default_factory=dict)
    """Settings for students and ceilings, over ``finetune``."""
    extract: Annotated[Mapping[str, Any], Settings()] = field(default_factory=dict)
    """Settings of the extraction: dtype, pool, batch_tokens, …"""
    rounds: Annotated[int, Whole(1, 1000)] = 1
    """Strong-to-strong: number of fresh copies trained in turn; 1 is the student alone."""
    chain: Annotated[Sequence[str], MODELS] = ()
    """Bootstrapping: models, weakest first; each labels new rows for the next."""
    lm_first: Annotated[bool, Flag()] = False
    """Language-model loss on the task's texts before students and ceiling."""
    lm_finetune: Annotated[Mapping[str, Any], Settings()] = field(default_factory=dict)
    """Settings of that, over ``finetune``."""
    curves: Annotated[bool, Flag()] = False
    """Keep predictions of every evaluation: overfitting curves."""

    def __post_init__(self) -> None:
        """Raise UsageError if the fields do not fit together; nothing is read."""
        for name in ("task", "weak", "strong", "seeds", "losses"):
            given = getattr(self, name) or (name == "weak" and self.weak_labels)
            if not given and not (name in ("weak", "strong") and self.chain):
                raise UsageError(f"A run needs {name}; name at least one.")
        if self.weak and self.weak_labels is not None:
            raise UsageError(
                "weak and weak_labels both give the weak labels; leave one of them out."
            )
        if self.trusted_rows is not None and (self.weak_on == "train" or self.chain):
            raise UsageError(
                "trusted_rows are taken from the supervisor's rows and given to the student; leave "
                "them out with weak_on: train, and with a chain."
            )
        if FINETUNE not in self.student:
            for name, default in FINETUNED_ONLY.items():
                if getattr(self, name) != default:
                    raise UsageError(
                        f"{name} is for finetuned students; leave it out, or add {FINETUNE} to "
                        "student."
                    )
        if len(self.chain) == 1:
            raise UsageError("A chain needs at least two models, weakest first.")
        probes = probe_names()
        _check_names("probe", self.probes, probes)
        _check_names("action", self.actions, tuple(ACTIONS))
        from probekit.students.losses import check_loss, loss_names

        losses = tuple(loss_names())
        _check_names("loss", self.losses, losses)
        # Options of probes, actions and losses that are not used are allowed: one file may serve
        # several runs.
        for name, options in _nested("probe_options", self.probe_options, probes):
            check_names(options, self.probe_kinds(name), place=("probe_options", name))
        for name, options in _nested("action_options", self.action_options, tuple(ACTIONS)):
            check_names(options, ACTION_KINDS[name], place=("action_options", name))
        for name, options in _nested("loss_options", self.loss_options, losses):
            try:
                check_loss(name, options)
            except SettingError as error:
                raise within(error, "loss_options", name) from None
        self._check_trainings()
        self._check_extraction()

    @staticmethod
    def probe_kinds(name: str) -> Mapping[str, Kind]:
        """Return what ``probe_options`` may hold for a probe."""
        return {**parameter_kinds(name), "in_sample": FLAG}

    def _check_trainings(self) -> None:
        """Check each mapping of finetuning settings alone, and over ``finetune``, as it is used."""
        from probekit.students.config import FinetuneConfig

        model = {"model": "any"}
        for name in ("finetune", "weak_finetune", "strong_finetune", "lm_finetune"):
            settings = getattr(self, name)
            for setting, field_ in OF_THE_RUN.items():
                if setting in settings:
                    raise SettingError(f" is set by {field_}; leave it out.", (name, setting))
            over = {} if name == "finetune" else self.finetune
            FinetuneConfig.from_mapping({**model, **over, **settings}, of=name)

    def _check_extraction(self) -> None:
        if not self.extract:
            return
        from probekit.activations.job import Request

        for name in NOT_EXTRACTED:
            if name in self.extract:
                raise SettingError(" is set by the run; leave it out.", ("extract", name))
        try:
            from_mapping(Request, {"rows": (), "model": "any", "output": "any", **self.extract})
        except UsageError as error:
            raise within(error, "extract") from None

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any], source: str | Path | None = None) -> Self:
        """Make a configuration from the content of a YAML file.

        A single name stands for a list of one. Messages name ``source``, the file, and the line.
        """
        try:
            return from_mapping(cls, content)
        except SettingError as error:
            raise error if source is None else in_file(error, Path(source)) from None
        except UsageError as error:
            raise error if source is None else UsageError(f"{source}: {error}") from None

    def to_mapping(self) -> dict[str, Any]:
        """Return the fields as YAML and JSON types."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    def changed(self, **values: Any) -> Self:
        """Return a copy with other values."""
        return replace(self, **values)

    def differences(self, other: RunConfig) -> list[str]:
        """Return the names of the fields that differ."""
        own, others = self.to_mapping(), other.to_mapping()
        return [name for name in own if own[name] != others[name]]


def read_config(path: Path) -> RunConfig:
    """Read a YAML file.

    Raises
    ------
    DataError
        Where it is missing or not YAML.
    """
    return RunConfig.from_mapping(read_settings(path), path)


def write_config(config: RunConfig, path: Path) -> None:
    """Write the YAML file that repeats a run."""
    import yaml

    with atomic_write(path, "w") as file:
        command = f"probekit {config.command} --config config.yaml -o ANOTHER_FOLDER"
        file.write(f"# Repeat with: {command}\n")
        yaml.safe_dump(config.to_mapping(), file, sort_keys=False, allow_unicode=True, width=100)


def _nested(
    name: str, settings: Mapping[str, Any], allowed: Sequence[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Return the mappings of settings by the probe, action or loss that they are for."""
    nested = []
    for key, value in settings.items():
        if key not in allowed:
            raise SettingError(
                f" is none of {', '.join(allowed)}{did_you_mean(key, allowed)}.", (name, key)
            )
        nested.append((key, checked((name, key), Settings(), value)))
    return nested


def _check_names(kind: str, names: Sequence[str], allowed: Sequence[str]) -> None:
    for name in names:
        if name not in allowed:
            raise UsageError(
                f"There is no {kind} {name!r}{did_you_mean(name, allowed)}; there are "
                f"{', '.join(allowed) or 'none'}."
            )
    if len(set(names)) < len(names):
        raise UsageError(f"A {kind} is named twice: {', '.join(names)}.")
