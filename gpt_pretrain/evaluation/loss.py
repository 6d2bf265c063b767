"""The LightningModule: training and validation steps around a `GPTModel`.

Shapes: B batch, T time, V vocab_size.
"""

from __future__ import annotations

from torch import Tensor

from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.model.kernels.loss import linear_cross_entropy


def next_token_loss(
    model: GPTModel, token_ids: Tensor, target_ids: Tensor, positions: Tensor | None = None, *, compiled: bool = False
) -> Tensor:
    """Mean cross-entropy of a model in nats a token, over all positions of token_ids that have a target, (B, T) each.

    Args:
        positions: of each token in its document, where documents are kept apart.
    """
    hidden = model.hidden_states(token_ids, positions=positions)
    return linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, target_ids.flatten(), compiled=compiled)
