"""Charts of a run's evaluations on held-out texts and tasks, for its report page."""

from __future__ import annotations

from gpt_pretrain.runs.charts.curves import measure_figure
from gpt_pretrain.runs.metrics_rows import EVALUATED
from gpt_pretrain.runs.reader import MetricSeries, RunContents
from gpt_pretrain.runs.report.page_parts import Picture, make_picture

# The measures of texts and tasks: the suffixes of their columns, their titles and their units.
MEASURES = {
    "bits_per_byte": ("Bits per byte", "bits per byte"),
    "loss": ("Loss", "nats per token"),
    "accuracy": ("Accuracy", "share of the items"),
    "accuracy_by_length": ("Accuracy by length", "share of the items"),
    "centered": ("Accuracy above guessing", "0 is guessing, 1 is no mistake"),
    "core": ("CORE metric", "mean of the centered accuracies"),
    "perplexity": ("Perplexity of a continuation", "perplexity"),
}


def held_out_charts(run: RunContents) -> list[Picture]:
    """Return a chart of each measure, with a line for each text or task that has it.

    Losses are left out if there are bits per byte, since only these compare models with different tokenizers.
    """
    pictures = []
    found = {measure: _series(run, measure) for measure in MEASURES}
    if found["bits_per_byte"].keys() >= found["loss"].keys():
        found["loss"] = {}
    for measure, series in found.items():
        if series:
            title, unit = MEASURES[measure]
            figure = measure_figure(series, label=unit, log=measure == "perplexity")
            pictures.append(make_picture(figure, title, f"{title} of {', '.join(series)}, by optimizer step.", width="wide"))
    return pictures


def _series(run: RunContents, measure: str) -> dict[str, MetricSeries]:
    """Return the values of a measure by text or task. Values of a moving average of the weights have their own names."""
    found = {}
    for column, series in run.metrics.items():
        _, _, rest = column.partition(EVALUATED)
        name, _, key = rest.rpartition("/")
        if column.startswith(EVALUATED) and series and key.removeprefix("ema_") == measure:
            found[f"{name}, moving average" if key != measure else name] = series
    return found
