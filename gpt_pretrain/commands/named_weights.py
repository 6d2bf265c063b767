"""Open the weights that the settings of generate.py, evaluate.py or serve.py name."""

from __future__ import annotations

from gpt_pretrain.checkpoints.pretrained import open_checkpoint, open_weights
from gpt_pretrain.checkpoints.weights import Weights
from gpt_pretrain.config.custom_parts import named_model
from gpt_pretrain.config.inference_schema import InferenceSettings, weight_names


def open_named_weights(settings: InferenceSettings) -> list[Weights]:
    """Open the weights of each name in `models` or `pretrained`, or else the run or checkpoint that `checkpoint` names.

    Raises:
        UserError: If one of them cannot be used.
    """
    kind, custom = settings.weights, named_model(settings.model)
    if names := weight_names(settings):
        return [open_weights(name, n_heads=settings.n_heads, kind=kind, custom=custom) for name in names]
    return [open_checkpoint(settings.checkpoint, kind=kind, custom=custom)]
