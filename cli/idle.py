"""Options that would do nothing beside the others: refused, for they are mistakes that do not show.

Only what was typed counts; a default is no mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import click

from probekit.cli.options import say
from probekit.probes.registry import REGISTRY

__all__ = ["refuse_idle"]

Options = Mapping[str, Any]


class Rule(NamedTuple):
    """Options, when they do something, and the reason where they do not."""

    names: tuple[str, ...]
    useful: Callable[[Options], Any]
    why: str
    told: bool = False
    """Told, not refused: grids and figures of one command for several sets of probes."""


def _of_probes(*names: str) -> Iterator[Rule]:
    """Rules of a sweep's options, those together that the same probes heed."""
    heeded: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        setting = "n_folds" if name == "folds" else name
        probes = tuple(each.name for each in REGISTRY.values() if setting in each.depends)
        heeded.setdefault(probes, []).append(name)
    for probes, same in heeded.items():
        why = f"without {' or '.join(probes)} in --probes"
        yield Rule(tuple(same), _sweeps(*probes), why, told=True)


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
CLEANING = (TRUTH, Rule(("rows",), _needs("write_data"), "without --write-data"))
CLASSES = ("classify", "reward")
RUN_ONLY = (
    *("probes", "actions", "action_options", "layer", "linear_students", "random_drops"),
    *("rounds", "curves"),
)

LORA = ("lora_rank", "lora_alpha", "lora_dropout", "lora_modules")

RULES: dict[str, tuple[Rule, ...]] = {
    "filter": (
        *CLEANING,
        Rule(("over_all",), lambda o: o["threshold"] is None, "with --threshold"),
    ),
    "relabel": CLEANING,
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
        Rule(("epochs",), lambda o: not _needs("max_steps")(o), "with --max-steps", told=True),
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


def refuse_idle(context: click.Context, options: Options) -> None:
    """Refuse options that were typed and do nothing beside the others.

    Raises
    ------
    click.UsageError
        Naming the option and why.
    """
    command = context.command
    for names, useful, why, told in RULES.get(command.name or "", ()):
        typed = [name for name in names if _typed(context, name)]
        if typed and not useful(options):
            flags = ", ".join(_flag(command, name) for name in typed)
            verb = "does" if len(typed) == 1 else "do"
            sentence = f"{flags} {verb} nothing {why}"
            if not told:
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
