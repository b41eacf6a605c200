"""Tables of ``probekit saliency``, from what its metrics.json holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from probekit.reports.tables import MISSING, Table, percent

__all__ = ["gap_sentence", "instead", "layers_table", "saliency_table", "saliency_title"]

CURVES = {
    "probe_truth": "ground truth, before finetuning",
    "finetune_weak_probe_truth": "ground truth, after it on weak labels",
    "finetune_truth_probe_truth": "ground truth, after it on ground truth",
    "probe_weak": "weak labels, before finetuning",
}
SHOWN_LAYERS = 9


def saliency_title(pair: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Tasks, models and seeds of a table."""
    seeds = len(pair["seeds"])
    models = f"{pair['weak']} → {pair['strong']}"
    return f"{summary['name']}: {models}, {seeds} seed{'s'[: seeds != 1]}"


def saliency_table(summary: Mapping[str, Any]) -> Table:
    """The five bars, with the probes at the last layer and at the layer chosen on validation.

    ``summary`` is an entry of ``tasks`` of a pair in metrics.json, or its ``overall``.
    """
    over_probe = {
        each["first"]: each for each in summary["compared"] if each["second"] == "probe_truth"
    }
    header = ("bar", "acc", "− bar 2", "AUROC", "acc, chosen layer", "layer")
    rows = [
        (
            f"{number}. {bar['name']}",
            figure(bar),
            _difference(over_probe.get(bar["key"])),
            percent(summary["auroc"][bar["key"]]),
            MISSING if bar["chosen"] is None else figure(bar["chosen"]),
            _layers(summary["chosen_layers"].get(bar["key"])),
        )
        for number, bar in enumerate(summary["bars"], 1)
    ]
    return Table(header, tuple(rows), tuple(_notes(summary)))


def figure(found: Mapping[str, Any]) -> str:
    """A mean in percent with its standard error, or its interval where it has none."""
    text = percent(found["mean"])
    if found["sem"] is not None:
        return f"{text} ± {100 * found['sem']:.1f}"
    return f"{text} [{100 * found['low']:.1f} {100 * found['high']:.1f}]"


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return MISSING
    mean, low, high = (100 * found[key] for key in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f} {high:+.1f}]"


def _layers(found: list[int] | None) -> str:
    return MISSING if not found else ", ".join(map(str, found))


def gap_sentence(summary: Mapping[str, Any], *, chosen: bool = False) -> str:
    """Say which share of the gap between bars 2 and 5 bar 4 closes, or why that cannot be said."""
    gap = summary["gap_closed_chosen" if chosen else "gap_closed"]
    where = "probes at the chosen layer" if chosen else "probes at the last layer"
    begin = f"Gap closed, (bar 4 − bar 2) / (bar 5 − bar 2), {where}:"
    if gap["value"] is None:
        return f"{begin} none to close, {gap['reason']}; {instead(summary, chosen=chosen)}."
    if gap["unbounded"]:
        return f"{begin} no bounds, {gap['reason']}; {instead(summary, chosen=chosen)}."
    text = f"{begin} {gap['value']:.2f} [{gap['low']:.2f} {gap['high']:.2f}]"
    if gap["sem"] is not None:
        text += f", s.e.m. over {summary['over']} {gap['sem']:.2f}"
    return text + "."


def instead(summary: Mapping[str, Any], *, chosen: bool = False) -> str:
    """Write bar 4 − bar 2 in points, which can be told where there is no gap."""
    bars = "finetune_weak_probe_truth", "probe_truth"
    found = {(each["first"], each["second"]): each for each in summary["compared"]}[bars]
    shown = found["chosen"] if chosen else found
    return f"bar 4 − bar 2 {_difference(shown)} points"


def finetune_sentence(summary: Mapping[str, Any]) -> str:
    """Say what finetuning gains over a linear probe on the same labels, in points."""
    found = {(each["first"], each["second"]): each for each in summary["compared"]}
    weak = _difference(found["finetune_weak", "probe_weak"])
    truth = _difference(found["finetune_truth", "probe_truth"])
    return f"Finetuning over a probe, points: on weak labels {weak}, on ground truth {truth}."


def _notes(summary: Mapping[str, Any]) -> Iterator[str]:
    yield gap_sentence(summary)
    yield gap_sentence(summary, chosen=True)
    yield finetune_sentence(summary)
    yield (
        f"acc: test rows right at 0.5, %; majority {percent(summary['chance'])}, weak supervisor "
        f"{percent(summary['weak_accuracy'])};"
    )
    yield (
        f"{percent(summary['label_accuracy'])} % of the weak labels are right. All bars train on "
        "the same rows; penalties and"
    )
    yield "layers are chosen on validation rows (bar 1: by their weak labels), never on test rows."
    if summary["over"] is not None:
        yield f"± standard error of the mean over {summary['over']}."
    yield "[95 % interval]: paired bootstrap over test rows; another seed moves it too."


def layers_table(summary: Mapping[str, Any]) -> Table:
    """Test accuracy by layer of the probes before and after finetuning."""
    found = {key: summary["curves"][key] for key in CURVES if key in summary["curves"]}
    layers = next(iter(found.values()))["layers"]
    shown = _spaced(len(layers))
    header = ("probe", *(f"layer {layers[i]}" for i in shown), "linear from")
    rows = tuple(
        (
            CURVES[key],
            *(percent(curve["mean"][i]) for i in shown),
            MISSING if curve["emerges"] is None else f"layer {curve['emerges']}",
        )
        for key, curve in found.items()
    )
    notes = (
        "Test rows that linear probes get right, %, before and after finetuning. linear from: the",
        "first layer whose probe has come 90 % of the way from the majority to the best layer's.",
    )
    return Table(header, rows, notes)


def _spaced(many: int) -> list[int]:
    """At most nine places, first and last among them."""
    if many <= SHOWN_LAYERS:
        return list(range(many))
    return sorted({round(i * (many - 1) / (SHOWN_LAYERS - 1)) for i in range(SHOWN_LAYERS)})
