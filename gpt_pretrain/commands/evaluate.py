"""The work of evaluate.py: from its composed config to a table of results."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from gpt_pretrain.commands.failures import report_failures
from gpt_pretrain.commands.job import overridden_keys
from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.schema import EvaluateSettings
from gpt_pretrain.config.validation import evaluate_problems
from gpt_pretrain.errors import UserError

if TYPE_CHECKING:
    from gpt_pretrain.checkpoints.pretrained import Weights
    from gpt_pretrain.evaluation.results import TextResult
    from gpt_pretrain.evaluation.texts import TextSource

RESULTS = "results.json"
# Settings of the text that only matter in a training.
UNUSED = {f"data.{name}" for name in ("batch_size", "train_ratio", "stride", "shift_windows", "num_workers", "val_tokens")} | {
    "data.respect_documents"
}

log = logging.getLogger(__name__)


def evaluate_models(config: DictConfig) -> None:
    """Print how well models predict a text, and write the numbers to results.json.

    Raises:
        SystemExit: If the command fails.
    """
    with report_failures():
        settings = to_settings(config, EvaluateSettings)
        if problems := evaluate_problems(settings):
            raise UserError(problems)
        for name in sorted(UNUSED & overridden_keys()):
            remedy = " Overlapping windows are set with stride=." if name == "data.stride" else ""
            log.warning("%s has no effect here, since it only matters in a training.%s", name, remedy)
        _evaluate(settings)


def _evaluate(settings: EvaluateSettings) -> None:
    from gpt_pretrain.checkpoints.checkpoint_file import first_readable
    from gpt_pretrain.checkpoints.pretrained import open_weights
    from gpt_pretrain.evaluation.results import TextResult, comparisons, result_rows
    from gpt_pretrain.evaluation.texts import typed_source, validation_source
    from gpt_pretrain.evaluation.unlikely_text import unlikely_loss
    from gpt_pretrain.runs.folder import find_checkpoints
    from gpt_pretrain.system.devices import keep_freed_memory
    from gpt_pretrain.system.files import write_json
    from gpt_pretrain.system.tables import format_table
    from gpt_pretrain.system.terminal import escape_line, print_escaped

    keep_freed_memory()
    if settings.models or settings.pretrained is not None:
        models = [open_weights(name, n_heads=settings.n_heads) for name in settings.models or [str(settings.pretrained)]]
    else:
        models = [first_readable(find_checkpoints(settings.checkpoint), open_weights)]
    source = typed_source(settings.data) or validation_source(models)
    results, misfits = list[TextResult](), list[str]()
    for weights in models:
        results += _score(weights, source, settings)
        loss, own = results[-1].nats_per_token.value, settings.tokenizer is None and weights.own_tokenizer is not None
        text = f"{weights.name}: the text"
        misfits += filter(None, [unlikely_loss(text, loss, vocab_size=weights.config.vocab_size, of_own_vocabulary=own)])
    print_escaped(f"{source.name}:")
    print(format_table(result_rows(results)))
    for misfit in misfits:
        log.warning("%s", escape_line(misfit))
    for stride in sorted({result.stride for result in results}, reverse=True):
        same = [result for result in results if result.stride == stride]
        for sentence in comparisons(same) if len(same) > 1 else []:
            print_escaped(sentence)
    file = Path(settings.run_dir) / RESULTS
    write_json(file, {"text": source.name, "models": [result.as_json() for result in results]})
    print_escaped(f"Results: {file}")


def _score(weights: Weights, source: TextSource, settings: EvaluateSettings) -> list[TextResult]:
    """Score the text with a model in windows that do not overlap, and also with the typed stride."""
    from gpt_pretrain.evaluation.progress import scoring_progress
    from gpt_pretrain.evaluation.results import summarize
    from gpt_pretrain.evaluation.scoring import Scorer, pick_scoring_precision
    from gpt_pretrain.evaluation.text_scores import score_text
    from gpt_pretrain.system.devices import pick_device

    text = source.tokenize(weights.build_tokenizer(settings.tokenizer), max_bytes=settings.max_bytes)
    context, strides = weights.config.context_length, [weights.config.context_length]
    if settings.stride is not None and settings.stride > context:
        raise UserError(f"stride={settings.stride} exceeds the context of {weights.name}, which is {context} tokens.")
    if settings.stride not in (None, context):
        strides.append(settings.stride)
    model = weights.build(device=pick_device(settings.device))
    precision, reason = pick_scoring_precision(settings.precision, model)
    log.info("%s: %s tokens, precision %s: %s", weights.name, f"{text.tokens.count:,}", precision, reason)
    scorer = Scorer(model, name=weights.name, precision=precision, batch_tokens=settings.batch_tokens)
    results = []
    for stride in strides:
        label = f"{weights.name}, stride {stride}"
        with scoring_progress(label, total=text.tokens.count, unit="tokens") as report:
            scores = score_text(scorer, text, stride=stride, report=report)
        results.append(summarize(weights.name, scores, stride=stride, context_length=context))
    return results
