"""What an experiment is: one dataclass, one YAML file that replays it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from probekit.errors import DataError, UsageError, did_you_mean
from probekit.files import atomic_write
from probekit.safe import load_yaml, read_text

__all__ = ["ACTIONS", "RunConfig", "read_config", "write_config"]

# Name of an action -> function of probekit.cleaning and what it is told.
ACTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "filter": ("filter", {}),
    "relabel": ("relabel", {}),
    "relabel-hard": ("relabel", {"hard": True}),
}
PROBES = ("knn", "logreg", "topofilter", "ensemble", "mass-mean")
ROWS = ("supervisor_rows", "student_rows", "test_rows")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of ``probekit run``."""

    command: ClassVar[str] = "run"

    task: Sequence[str]
    """Tasks, or files of rows with a column label; each is an experiment of its own."""
    weak: Sequence[str]
    """Weak supervisors' models."""
    strong: Sequence[str]
    """Students' models; every pair of a weak and a strong one is run."""
    seeds: Sequence[int] = (0,)
    """One repetition each: of the split, of initialisation and of the order of rows."""
    supervisor_rows: int | None = None
    """At most so many rows with ground truth for the supervisor; None: its half."""
    student_rows: int | None = None
    """At most so many rows with weak labels for the student; None: its half."""
    test_rows: int | None = None
    """At most so many test rows."""
    validation_share: float = 0.1
    """Share of the student's rows that is held out, with weak labels, for early stopping."""
    weak_on: str = "heldout"
    """``heldout``: the supervisor labels rows it has not seen; ``train``: its own."""
    losses: Sequence[str] = ("xent",)
    """Losses of the students on plain weak labels; the first is also that of all others."""
    loss_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options by name of the loss."""
    probes: Sequence[str] = ("knn", "logreg", "topofilter")
    """Probes that clean the weak labels."""
    probe_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Parameters by name of the probe."""
    layer: str | int = "mid"
    """Layer of the strong model that the probes read; the ensemble reads several by itself."""
    actions: Sequence[str] = ("filter", "relabel")
    """What each probe is used for: filter, relabel (soft), relabel-hard."""
    action_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Arguments by name of the action."""
    linear_students: bool = True
    """Also judge the probes themselves as students."""
    random_drops: int = 1
    """Random drops per size of filter, each a student of its own."""
    finetune: Mapping[str, Any] = field(default_factory=dict)
    """Settings of finetuning that hold for all models."""
    weak_finetune: Mapping[str, Any] = field(default_factory=dict)
    """Settings for weak supervisors, over ``finetune``."""
    strong_finetune: Mapping[str, Any] = field(default_factory=dict)
    """Settings for students and ceilings, over ``finetune``."""
    extract: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the extraction: dtype, pool, batch_tokens, …"""
    rounds: int = 1
    """Strong-to-strong: how often a fresh copy is trained; 1 is the student alone."""
    chain: Sequence[str] = ()
    """Bootstrapping: models, weakest first; each labels fresh rows for the next."""
    lm_first: bool = False
    """Language-model loss on the task's texts before students and ceiling."""
    lm_finetune: Mapping[str, Any] = field(default_factory=dict)
    """Settings of that, over ``finetune``."""
    curves: bool = False
    """Keep predictions of every evaluation: overfitting curves."""

    def __post_init__(self) -> None:
        """Refuse what can be told to be wrong without reading anything."""
        for name in ("task", "weak", "strong", "seeds", "losses"):
            if not getattr(self, name) and not (name in ("weak", "strong") and self.chain):
                raise UsageError(f"A run needs {name}; name at least one.")
        for name in ROWS:
            value = getattr(self, name)
            if value is not None and value < 4:
                raise UsageError(f"{name} is at least 4, not {value}.")
        if not 0 <= self.validation_share < 1:
            raise UsageError(f"validation_share lies in [0, 1), got {self.validation_share}.")
        if self.weak_on not in ("heldout", "train"):
            raise UsageError(f"weak_on is heldout or train, not {self.weak_on!r}.")
        if self.rounds < 1 or self.random_drops < 0:
            raise UsageError("rounds is at least 1 and random_drops at least 0.")
        if len(self.chain) == 1:
            raise UsageError("A chain needs at least two models, weakest first.")
        _check_names("probe", self.probes, PROBES)
        _check_names("action", self.actions, tuple(ACTIONS))
        from probekit.students.losses import loss_names

        losses = tuple(loss_names())
        _check_names("loss", self.losses, losses)
        # Options of what is not used this time do no harm: one file may serve several runs.
        _check_names("probe in probe_options,", list(self.probe_options), PROBES)
        _check_names("action in action_options,", list(self.action_options), tuple(ACTIONS))
        _check_names("loss in loss_options,", list(self.loss_options), losses)

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any], source: str = "the configuration") -> Self:
        """Take what a YAML file holds; a single name stands for a list of one."""
        known = {each.name for each in fields(cls)}
        for key in content:
            if key not in known:
                raise UsageError(
                    f"{source} has the unknown field {key!r}{did_you_mean(key, known)}."
                )
        missing = [name for name in ("task",) if name not in content]
        if missing:
            raise UsageError(f"{source} lacks {', '.join(missing)}.")
        values: dict[str, Any] = {"weak": (), "strong": ()}
        for each in fields(cls):
            if each.name not in content:
                continue
            values[each.name] = _typed(each.name, str(each.type), content[each.name], source)
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """Return it as YAML and JSON can hold it."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    def changed(self, **values: Any) -> Self:
        """Return it with other values."""
        return replace(self, **values)

    def differences(self, other: RunConfig) -> list[str]:
        """Names of the fields that differ."""
        mine, theirs = self.to_mapping(), other.to_mapping()
        return [name for name in mine if mine[name] != theirs[name]]


def read_config(path: Path) -> RunConfig:
    """Read a YAML file.

    Raises
    ------
    DataError
        Where it is missing or no YAML.
    """
    return RunConfig.from_mapping(read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file."""
    content = load_yaml(read_text(path), str(path))
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no fields; write them as `name: value`.")
    return content


def write_config(config: RunConfig, path: Path) -> None:
    """Write the YAML file that replays a run."""
    import yaml

    with atomic_write(path, "w") as file:
        replay = f"probekit {config.command} --config config.yaml -o ANOTHER_FOLDER"
        file.write(f"# Replay with: {replay}\n")
        yaml.safe_dump(config.to_mapping(), file, sort_keys=False, allow_unicode=True, width=100)


def _typed(name: str, kind: str, value: Any, source: str) -> Any:
    """Bring a YAML value into the field's form, or say what is wrong with it."""
    if kind.startswith("Sequence"):
        listed = list(value) if isinstance(value, list | tuple) else [value]
        wanted: type = int if "int" in kind else str
        wrong = [v for v in listed if not isinstance(v, wanted) or isinstance(v, bool)]
        if wrong:
            raise UsageError(f"{source}: {name} is a list of {wanted.__name__}, got {wrong[0]!r}.")
        return tuple(listed)
    if kind.startswith("Mapping"):
        if not isinstance(value, Mapping):
            raise UsageError(f"{source}: {name} is a mapping of settings, got {value!r}.")
        return dict(value)
    allowed = [part.strip() for part in kind.split("|")]
    names = {"NoneType": "None"}.get(type(value).__name__, type(value).__name__)
    if names in allowed:
        return value
    if names == "int" and "float" in allowed:
        return float(value)
    raise UsageError(f"{source}: {name} is {kind}, got {value!r}.")


def _check_names(what: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    for name in given:
        if name not in allowed:
            raise UsageError(
                f"There is no {what} {name!r}{did_you_mean(name, allowed)}; there are "
                f"{', '.join(allowed) or 'none'}."
            )
    if len(set(given)) < len(given):
        raise UsageError(f"A {what} is named twice: {', '.join(given)}.")
