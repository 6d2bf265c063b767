"""Open the weights that the settings of generate.py, evaluate.py or serve.py name."""

from __future__ import annotations

import sys

from gpt_pretrain.checkpoints.pretrained import open_checkpoint, open_weights
from gpt_pretrain.checkpoints.weights import Weights
from gpt_pretrain.config.custom_parts import named_model
from gpt_pretrain.config.inference_schema import GenerateSettings, InferenceSettings, ServeSettings, weight_names
from gpt_pretrain.generation.decoding import PRECISIONS, decoding_model, pick_decoding_precision
from gpt_pretrain.generation.prompts import TextModel
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.system.devices import pick_device
from gpt_pretrain.system.terminal import escape_line, print_escaped


def open_named_weights(settings: InferenceSettings) -> list[Weights]:
    """Open the weights of each name in `models` or `pretrained`, or else the run or checkpoint that `checkpoint` names.

    Raises:
        UserError: If one of them cannot be used.
    """
    kind, custom = settings.weights, named_model(settings.model)
    if names := weight_names(settings):
        return [open_weights(name, n_heads=settings.n_heads, kind=kind, custom=custom) for name in names]
    return [open_checkpoint(settings.checkpoint, kind=kind, custom=custom)]


def load_text_model(
    weights: Weights, settings: GenerateSettings | ServeSettings, *, batch_size: int = 1
) -> tuple[TextModel, LanguageModel]:
    """Build the model of some weights, print its precision, and return it ready to decode and as it is.

    Args:
        batch_size: The usual number of rows to decode together.
    """
    tokenizer = weights.build_tokenizer(settings.tokenizer)
    model = weights.build(device=pick_device(settings.device))
    precision, reason = pick_decoding_precision(settings.precision, model)
    print_escaped(f"({escape_line(weights.name)}; precision {precision}: {reason})", file=sys.stderr)
    return TextModel(decoding_model(model, dtype=PRECISIONS[precision], batch_size=batch_size), tokenizer), model
