"""The loss of a model on token ids.

Shapes: B batch, T time.
"""

from __future__ import annotations

from torch import Tensor

from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.model.kernels.loss import linear_cross_entropy


def next_token_loss(
    model: GPTModel, token_ids: Tensor, target_ids: Tensor, positions: Tensor | None = None, *, compiled: bool = False
) -> Tensor:
    """Return the mean cross-entropy of next-token prediction, in nats per token.

    Positions whose target is -100 do not count.

    Args:
        token_ids: int64, (B, T).
        target_ids: int64, (B, T).
        positions: Position of each token in its document, int64, (B, T). None treats each row as one document.
        compiled: Use the compiled softmax kernel.
    """
    hidden = model.hidden_states(token_ids, positions=positions)
    return linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, target_ids.flatten(), compiled=compiled)
