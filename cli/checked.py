"""What every option and argument may be, checked while the command line is read.

``check_values`` gives each parameter of a command its kind (probekit.kinds): by its name, as
``probekit.kinds`` has it, else by its click type. No command can forget it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any, NamedTuple

import click

from probekit.cli.options import say
from probekit.errors import UsageError, did_you_mean
from probekit.kinds import (
    COUNT,
    FOLDS,
    KINDS,
    MAX_COUNT,
    PENALTY,
    SEED,
    SHARE,
    Kind,
    Layers,
    Name,
    Number,
    Text,
    Whole,
    Words,
    shown,
)
from probekit.probes.registry import REGISTRY, ProbeName, probe_names

__all__ = ["check_values", "parse_grid", "parse_numbers", "seed_list"]

RATE, ROWS = Number(0, 1e6, above=True), Whole(4)
SCALES = ("log", "lin")
# Values of a grid without N: for each factor of ten (of whole numbers or not), or in all.
PER_DECADE = {True: 4, False: 2}
LINEAR = 11
MOST = 1000
GRID_FORM = "LOW:HIGH:log, LOW:HIGH:lin or LOW:HIGH:N:log"


class Seeds(Kind):
    """A number of seeds, or a list of seeds; the text itself is kept (``seed_list`` reads it)."""

    words = (
        "a number of seeds (1 to 1,000), or a list of different seeds from 0 to 4,294,967,295, "
        "such as 0,1,2"
    )

    def read(self, value: Any) -> str:
        """Take text."""
        parts = [part.strip() for part in str(value).split(",")]
        try:
            numbers = [(SEED if "," in str(value) else Whole(1, 1000)).parse(p) for p in parts if p]
        except ValueError:
            numbers = []
        if not numbers or len(set(numbers)) < len(numbers):
            raise ValueError(self.words)
        return str(value)


def seed_list(text: str) -> list[int]:
    """Read what ``Seeds`` accepted: the seeds themselves, or their number, counted from 0."""
    numbers = [int(part) for part in text.split(",") if part.strip()]
    return numbers if "," in text else list(range(numbers[0]))


class Grid(Kind):
    """A range or list of numbers; the text itself is kept (``parse_grid`` reads it)."""

    words = "a range or a list of numbers"

    def __init__(self, flag: str, **allowed: Any) -> None:
        self.flag, self.allowed = flag, allowed

    def read(self, value: Any) -> str:
        """Take text."""
        parse_grid(str(value), name=self.flag, **self.allowed)
        return str(value)


def parse_grid(
    text: str,
    *,
    name: str,
    whole: bool = False,
    low: float = 0.0,
    high: float = math.inf,
    open_ends: bool = False,
) -> tuple[float, ...]:
    """Read a grid: ``LOW:HIGH[:N]:log|lin``, both ends included, or a list such as ``1,5,10``.

    Parameters
    ----------
    text
        What was given. Without N a ``log`` grid of whole numbers has 4 values for each factor of
        ten and one of real numbers 2 (1e-4:1e1:log is 11 values); a ``lin`` grid has 11.
    name
        The option, for messages.
    whole
        Round to whole numbers (then fewer may be left).
    low, high
        Least and largest value allowed; with ``open_ends`` both are excluded.

    Returns
    -------
    Values in ascending order, each once.

    Raises
    ------
    UsageError
        For anything that cannot be read, is empty, or lies outside what is allowed.
    """
    parts = [part.strip() for part in text.split(":")]
    if len(parts) == 1:
        values = [
            _number(part, name, text, whole=whole) for part in text.split(",") if part.strip()
        ]
    else:
        values = _spread(parts, name, text, whole=whole)
    if not values:
        raise UsageError(f"{name} {text!r} is empty; give a list such as 1,5,10 or {GRID_FORM}.")
    for value in values:
        inside = low < value < high if open_ends else low <= value <= high
        if not inside:
            raise UsageError(
                f"{name} {text!r} holds {value:g}; allowed is {_allowed(low, high, open_ends)}."
            )
    return tuple(sorted({int(v) if whole else float(v) for v in values}))


def parse_numbers(text: str, known: Iterable[int], *, name: str, place: str) -> tuple[int, ...]:
    """Read whole numbers that must be among ``known``: ``all``, ``last``, ``1,3``, ``2-5``, ``-1``.

    ``place`` is what holds them, for messages.
    """
    choices = sorted(known)
    chosen: set[int] = set()
    for part in (p.strip() for p in text.split(",") if p.strip()):
        if part == "all":
            chosen.update(choices)
        elif part == "last":
            chosen.add(choices[-1])
        else:
            chosen.update(_numbers(part, choices, name, place))
    if not chosen:
        raise UsageError(f"{name} {text!r} is empty; {place} holds {_listed(choices)}.")
    return tuple(sorted(chosen))


def _spread(parts: list[str], name: str, text: str, *, whole: bool) -> list[float]:
    if len(parts) not in (3, 4) or parts[-1] not in SCALES:
        raise UsageError(
            f"{name} {text!r} is not a range; give {GRID_FORM}, or a list such as 1,5,10."
        )
    scale = parts[-1]
    low, high = (_number(part, name, text, whole=whole) for part in parts[:2])
    if low > high:
        raise UsageError(
            f"{name} {text!r} is an empty range: its lower end {low:g} exceeds its upper end "
            f"{high:g}; exchange them."
        )
    if scale == "log" and low <= 0:
        raise UsageError(
            f"{name} {text!r}: a log range begins above 0, got {low:g}; use lin, or a list."
        )
    if len(parts) == 4:
        count = int(_number(parts[2], name, text, whole=True))
        if not 1 <= count <= MOST:
            raise UsageError(f"{name} {text!r} asks for {count} values; allowed are 1 to {MOST}.")
    elif scale == "log":
        count = 1 + max(1, round(PER_DECADE[whole] * (math.log10(high) - math.log10(low))))
    else:
        count = LINEAR
    if low == high:
        return [low]
    import numpy as np  # `probekit --help` does without

    spaced: Callable[..., Any] = np.geomspace if scale == "log" else np.linspace
    values = spaced(low, high, count)
    if whole:
        return [float(v) for v in np.rint(values)]
    # Twelve digits: 1e-4:1e1:log holds 0.1, not 0.10000000000000002.
    return [float(f"{v:.12g}") for v in values]


def _number(part: str, name: str, text: str, *, whole: bool) -> float:
    try:
        value = float(Number().parse(part))
    except ValueError:
        raise UsageError(
            f"{name} {text!r} holds {part!r}, which is not a number; give {GRID_FORM}, or a list "
            "such as 1,5,10."
        ) from None
    if whole and value != int(value):
        raise UsageError(f"{name} {text!r} holds {part}; whole numbers are needed.")
    return value


def _numbers(part: str, choices: list[int], name: str, place: str) -> list[int]:
    first, dash, last = part[1:].partition("-")
    first = part[0] + first
    try:
        ends = [int(first), int(last)] if dash else [int(first)]
    except ValueError:
        raise UsageError(
            f"{name} {part!r} cannot be read; give all, last, numbers such as 1,3 or ranges such "
            f"as 2-5; {place} holds {_listed(choices)}."
        ) from None
    if len(ends) == 2:
        asked = list(range(ends[0], ends[1] + 1))
        if not asked:
            raise UsageError(f"{name} {part!r} runs backwards; write the smaller number first.")
    else:
        asked = [choices[ends[0]] if -len(choices) <= ends[0] < 0 else ends[0]]
    missing = [number for number in asked if number not in choices]
    if missing:
        raise UsageError(f"{name}: {place} holds no {missing[0]}; it holds {_listed(choices)}.")
    return asked


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _allowed(low: float, high: float, open_ends: bool) -> str:
    if math.isinf(high):
        return f"more than {low:g}" if open_ends else f"{low:g} or more"
    return f"{low:g} to {high:g}" + (", both excluded" if open_ends else "")


class Names(Kind):
    """Some of these names, comma-separated; the text itself is kept."""

    def __init__(self, names: Callable[[], tuple[str, ...]]) -> None:
        self.names = names

    @property
    def words(self) -> str:  # type: ignore[override]
        """What is allowed."""
        return f"some of {', '.join(self.names())}, each once, comma-separated"

    def read(self, value: Any) -> str:
        """Take text."""
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        names = self.names()
        for part in parts:
            if part not in names:
                raise ValueError(f"{self.words}{did_you_mean(part, names)}")
        if not parts or len(set(parts)) < len(parts):
            raise ValueError(self.words)
        return str(value)


NEIGHBORS = {"whole": True, "low": 1, "high": MAX_COUNT}

# Name of a parameter, or command and name -> what it may be.
OPTIONS: dict[str, Kind] = {
    "seed": SEED,
    "seeds": Seeds(),
    "layer": Whole(-9999, 9999),
    "run.layer": Layers(),
    **dict.fromkeys(("labels", "truth", "trusted", "rows", "predictions"), Name()),
    "model": Name("a model's name"),
    **dict.fromkeys(("settings", "loss_options"), Text("KEY=VALUE", free=True)),
    "predict": Name("[NAME=]ROWS", free=True),
    "probes": Text("comma-separated names", least=0),
    "actions": Text("comma-separated names", least=0),
    "layers": Layers(),
    "folds": FOLDS,
    "l2": KINDS["l2"],
    "zeta": Number(0, 1e6),
    "sweep.l2": Grid("--l2", high=PENALTY.high),
    "sweep.zeta": Grid("--zeta", high=1e6),
    "sweep.k": Grid("--k", **NEIGHBORS),
    "sweep.k_cc": Grid("--k-cc", **NEIGHBORS),
    "sweep.k_zeta": Grid("--k-zeta", **NEIGHBORS),
    "sweep.contaminations": Grid("--contaminations", high=1, open_ends=True),
    "sweep.probes": Names(probe_names),
    "probe": ProbeName(classes=True),
    **dict.fromkeys(("filter.probe", "relabel.probe"), ProbeName(classes=True, several=True)),
    "contamination": Words("auto", "confident", other=SHARE),
    "filter.threshold": Number(0, 1),
    "relabel.threshold": SHARE,
    "blend": Number(0, 1, above=True),
    "only_above": Number(0, 1, below=True),
    "trusted_accuracy": Number(0, 1, above=True),
    "train_share": Number(0, 1, above=True),
    "train_rows": Whole(2),
    "confidence": Number(0.5, 1),
    "certify.confidence": Number(0.5, 1, below=True),
    "max_error": KINDS["max_error"],
    "validation_share": Number(0, 1, below=True),
    "epochs": RATE,
    "lr": RATE,
    "weak_lr": RATE,
    "strong_lr": RATE,
    "lora_rank": Whole(1, 65_536),
    **dict.fromkeys(("batch_size", "grad_accum", "max_steps", "max_length", "patience"), COUNT),
    "rounds": Whole(1, 1000),
    "random_drops": Whole(0, 1000),
    "run.supervisor_rows": ROWS,
    "run.student_rows": ROWS,
    "run.trusted_rows": ROWS,
    "run.test_rows": ROWS,
    "saliency.supervisor_rows": ROWS,
    "saliency.student_rows": ROWS,
    "saliency.test_rows": ROWS,
}


class Checked(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since 8.4
    """A click type whose text is first read by a kind."""

    def __init__(self, inner: Any, kind: Kind) -> None:
        self.inner, self.kind, self.name = inner, kind, inner.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert, or fail with the kind's words."""
        try:
            read = self.kind.parse(value) if isinstance(value, str) else value
        except UsageError as error:  # of a grid, in its own words
            raise click.UsageError(str(error), ctx) from None
        except ValueError as reason:
            self.fail(f"it is {reason}, got {shown(value)}.", param, ctx)
        return self.inner.convert(read, param, ctx)

    def __getattr__(self, name: str) -> Any:
        """The inner type's attributes, such as how click shows it."""
        return getattr(self.inner, name)


class CheckedRange(click.IntRange):
    """A range, which the help shows, read by a kind."""

    def __init__(self, inner: click.IntRange, kind: Kind) -> None:
        super().__init__(inner.min, inner.max)
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert, or fail with the kind's words."""
        return Checked(click.INT, self.kind).convert(value, param, ctx)


class Nearest(click.Choice):  # type: ignore[type-arg,unused-ignore]  # generic since 8.4
    """A choice that names the nearest name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Take one of the names."""
        if value not in self.choices:
            listed = ", ".join(map(str, self.choices))
            hint = did_you_mean(value, map(str, self.choices))
            self.fail(f"it is one of {listed}, got {shown(value)}{hint}.", param, ctx)
        return value


def check_values(command: click.Command) -> click.Command:
    """Give every parameter of a command, or of a group's commands, its kind."""
    if isinstance(command, click.Group):
        for sub in command.commands.values():
            check_values(sub)
    for param in command.params:
        param.type = _checked(param.type, f"{command.name}.{param.name}", param.name or "")
    if command.callback is not None and not hasattr(command.callback, "__wrapped__"):
        command.callback = _useful(command.callback)
    return command


def _useful(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Check, before the command begins, that every option does something."""

    @wraps(callback)
    def begin(**options: Any) -> Any:
        _check_useful(click.get_current_context(), options)
        if options.get("truth") is not None:  # it is read last, perhaps hours later
            from probekit.sources import check_source

            check_source(options["truth"])
        return callback(**options)

    return begin


def _checked(kind: Any, full: str, name: str) -> Any:
    if isinstance(kind, Checked | CheckedRange | Nearest):
        return kind
    if isinstance(kind, click.Choice):
        return Nearest(kind.choices, kind.case_sensitive)
    named = OPTIONS.get(full) or OPTIONS.get(name)
    if named is None and isinstance(kind, click.types.IntParamType):
        low, high = getattr(kind, "min", None), getattr(kind, "max", None)
        named = Whole(-MAX_COUNT if low is None else low, MAX_COUNT if high is None else high)
    elif named is None and isinstance(kind, click.types.FloatParamType):
        named = Number()
    elif named is None and isinstance(kind, click.types.StringParamType | click.Path):
        named = Name() if isinstance(kind, click.Path) else Text()
    if named is None:
        return kind
    return (CheckedRange if isinstance(kind, click.IntRange) else Checked)(kind, named)


Options = Mapping[str, Any]


class Rule(NamedTuple):
    """Options that do something only beside others. Only what was typed counts."""

    names: tuple[str, ...]
    useful: Callable[[Options], Any]
    """Whether they do something."""
    why: str
    """The reason if not."""
    noted: bool = False
    """A note, not an error: one command may serve several sets of probes."""


def _of_probes(*names: str) -> Iterator[Rule]:
    """Rules of a sweep's options: one for those that the same probes use."""
    users: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        setting = "n_folds" if name == "folds" else name
        probes = tuple(each.name for each in REGISTRY.values() if setting in each.depends)
        users.setdefault(probes, []).append(name)
    for probes, same in users.items():
        why = f"without {' or '.join(probes)} in --probes"
        yield Rule(tuple(same), _sweeps(*probes), why, noted=True)


def _sweeps(*probes: str) -> Callable[[Options], bool]:
    def useful(options: Options) -> bool:
        return bool({part.strip() for part in options["probes"].split(",")} & {*probes})

    return useful


def _trains(*objectives: str) -> Callable[[Options], bool]:
    return lambda o: o["objective"] in objectives or "objective" in _keys(o["settings"])


def _needs(name: str) -> Callable[[Options], Any]:
    return lambda options: options[name] or name in _keys(options.get("settings", ()))


def _holds_out(options: Options) -> Any:
    return options["validation_share"] or _needs("early_stop")(options)


TRUTH = Rule(("truth_column",), _needs("truth"), "without --truth")
CLEANING = (
    TRUTH,
    Rule(("trusted_column",), _needs("trusted"), "without --trusted"),
    Rule(("rows",), _needs("write_data"), "without --write-data"),
)
TRAINED = Rule(("epochs", "lr"), lambda o: o["student"] == "finetune", "without --student finetune")
CLASSES = ("classify", "reward")
RUN_ONLY = (
    *("probes", "actions", "action_options", "layer", "linear_students", "random_drops"),
    *("rounds", "curves", "trusted_rows"),
)

LORA = ("lora_rank", "lora_alpha", "lora_dropout", "lora_modules")

RULES: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys(("diagnose", "audit", "clean"), (TRAINED,)),
    "filter": (
        *CLEANING,
        TRAINED,
        Rule(("over_all",), lambda o: o["threshold"] is None, "with --threshold"),
    ),
    "relabel": (*CLEANING, TRAINED),
    "finetune": (
        Rule(
            ("loss", "loss_options", "validation_share", "early_stop", "patience", "curves"),
            _trains(*CLASSES),
            "with this --objective, which learns texts",
        ),
        Rule(("only_labelled", "label_column"), _trains(*CLASSES), "with this --objective"),
        Rule(
            ("group_column",),
            lambda o: not _trains(*CLASSES)(o) or _holds_out(o),
            "without --validation-share or --early-stop",
        ),
        Rule(("predict", "labels"), _trains(*CLASSES, "completion"), "with --objective lm"),
        Rule(("lora_rank",), _needs("lora"), "without --lora"),
        Rule(("patience",), _needs("early_stop"), "without --early-stop"),
        Rule(("truth",), _needs("predict"), "without --predict"),
        Rule(("epochs",), lambda o: not _needs("max_steps")(o), "with --max-steps", noted=True),
    ),
    "review": (
        Rule(
            ("many", "acts", "rows", "text_column", "id_column", "no_text"),
            lambda o: not o["merge"],
            "with --merge",
        ),
        Rule(
            ("acts", "rows", "text_column", "id_column"),
            lambda o: not o["no_text"],
            "with --no-text",
        ),
    ),
    "report": (TRUTH,),
    "sweep": (
        TRUTH,
        *_of_probes("k", "l2", "standardize", "folds", "seeds"),
        *_of_probes("k_cc", "k_zeta", "zeta", "variant", "metric"),
    ),
    "saliency": (Rule(("losses",), lambda o: "," not in o["losses"], "beyond the first loss"),),
}


def _check_useful(context: click.Context, options: Options) -> None:
    """Raise click.UsageError if an option was typed that does nothing beside the others."""
    command = context.command
    for names, useful, why, noted in RULES.get(command.name or "", ()):
        typed = [name for name in names if _typed(context, name)]
        if typed and not useful(options):
            flags = ", ".join(_flag(command, name) for name in typed)
            verb = "does" if len(typed) == 1 else "do"
            sentence = f"{flags} {verb} nothing {why}"
            if not noted:
                raise click.UsageError(f"{sentence}; leave that out.", context)
            say(f"Note: {sentence}.")
    for key in _keys(options.get("settings", ())):
        if command.name == "saliency" and key.split(".")[0] in RUN_ONLY:
            raise click.UsageError(f"--set {key} does nothing in saliency.", context)
        if command.name == "finetune" and key in LORA and not _needs("lora")(options):
            raise click.UsageError(f"--set {key} does nothing without --lora.", context)


def _keys(settings: Any) -> list[str]:
    return [str(pair).partition("=")[0].strip() for pair in settings]


def _typed(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _flag(command: click.Command, name: str) -> str:
    param = next(each for each in command.params if each.name == name)
    return max([*param.opts, *param.secondary_opts], key=len)
