"""Start the LM Evaluation Harness with this program's models."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gpt_pretrain.errors import UserError

NAME, MODEL = "gpt_pretrain", "gpt_pretrain.evaluation.harness_model:HarnessModel"


def lm_eval_command(arguments: Sequence[str]) -> None:
    """Run the command line of the harness, with `--model gpt_pretrain` added to its models.

    Releases after 0.4.13 also find the model by this package's entry point, so that `lm_eval` itself knows it.

    Raises:
        UserError: If the harness is not installed.
    """
    try:
        import lm_eval.models
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise UserError('The LM Evaluation Harness is not installed. Run: pip install "gpt-pretrain[harness]"') from error
    assert lm_eval.models.MODEL_MAPPING  # This import registers the harness's own models.
    if NAME not in model_registry:
        model_registry.register(NAME, target=MODEL)
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()
