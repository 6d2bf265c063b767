"""The user's own model: any module that maps token ids to logits, with the interface of the built-in models.

Shapes: B batch, T time, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.kernels.loss import IGNORED
from gpt_pretrain.model.kv_cache import KVCache
from gpt_pretrain.model.language_model import LanguageModel

PROBED = 8  # tokens of the windows in the trial of a model
PROBE_STD = 0.02  # of weights that start at zero, during the trial
PROBABILITY_ERROR = 0.01  # of a sum of probabilities, even in bf16
LEAK = 1e-4  # change of a logit relative to the largest one; rounding does not explain it


class CustomModel(LanguageModel):
    """The user's module, with the known parts of its architecture: the vocabulary and the context.

    Args:
        config: An architecture of the kind "custom".
        module: Maps token ids, int64, (B, T), to logits, (B, T, V), or to an object with an attribute `logits`.
    """

    def __init__(self, config: GPTConfig, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.activation_checkpointing = False
        self.custom = module

    def forward(self, token_ids: Tensor) -> Tensor:
        if not torch.is_inference_mode_enabled():
            return logits_of(self.custom(token_ids))
        # A module may keep computed tensors, such as rotations. Its next training step could not use tensors of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            return logits_of(self.custom(token_ids.clone()))

    def hidden_states(
        self,
        token_ids: Tensor,
        *,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        embedding: Tensor | None = None,
    ) -> Tensor:
        """Return the logits, (B, T, V), since the hidden states of the module are unknown."""
        assert cache is None and positions is None and mask is None and embedding is None
        logits: Tensor = self(token_ids)
        return logits

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits unchanged."""
        return hidden

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def loss(self, token_ids: Tensor, target_ids: Tensor) -> Tensor:
        """Return the mean cross-entropy over the positions with a target, in nats, a scalar; 0 if there are none."""
        logits, targets = self(token_ids).flatten(0, 1), target_ids.flatten()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        return total / (targets != IGNORED).sum().clamp(min=1)


def logits_of(output: Any) -> Tensor:
    """Return the logits in the output of a module: a tensor, or an object of transformers that contains them."""
    logits: Tensor = output if isinstance(output, Tensor) else getattr(output, "logits", output)
    return logits


def try_module(module: nn.Module, *, name: str, context_length: int, vocab_size: int) -> int:
    """Check by a small trial that a module is a causal language model, and return its number of logits.

    Args:
        name: The class, for messages.
        context_length: Longest window, in tokens.
        vocab_size: Number of token ids of the tokenizer.

    Raises:
        UserError: If it has no weights, returns something other than logits, or sees the tokens that it should predict.
    """
    problem = _state_problem(module)
    if problem is not None:
        raise UserError(f"model._target_={name} {problem}")
    length = min(PROBED, context_length)
    ids = (torch.arange(2 * length) % vocab_size).view(2, length)  # (B, T)
    with _trial_state(module):
        full = _checked_logits(module, ids[:1, :].repeat(1, -(-context_length // length))[:, :context_length], vocab_size, name)
        before = _checked_logits(module, ids, vocab_size, name)
        if _differ(before, _checked_logits(module, ids, vocab_size, name)):
            raise UserError(
                f"model._target_={name} has other logits when it reads the same tokens again. In eval mode they must not depend "
                "on random numbers or on earlier calls: use nn.Dropout, or F.dropout with training=self.training."
            )
        later, earlier = ids.clone(), ids.clone()
        later[:, -1] = (later[:, -1] + 1) % vocab_size
        earlier[0] = (earlier[0] + 1) % vocab_size
        after = _checked_logits(module, later, vocab_size, name)
        if length > 1 and vocab_size > 1 and _differ(before[:, :-1], after[:, :-1]):
            raise UserError(
                f"model._target_={name} sees the tokens that it is to predict: another token at position {length - 1} changes "
                "the logits before it. Add a causal mask."
            )
        others = [_checked_logits(module, one, vocab_size, name) for one in (earlier, ids.flip(0))]
        if vocab_size > 1 and any(_differ(before[row], found) for row, found in ((1, others[0][1]), (0, others[1][1]))):
            raise UserError(
                f"model._target_={name} mixes the windows of a batch: another window changes the logits of this one. Token ids "
                "have the shape (batch, time); layers of torch need batch_first=True for that."
            )
    return full.shape[2]


def _state_problem(module: nn.Module) -> str | None:
    """Return the problem of a module's weights as the end of a sentence, or None."""
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return "has no weights to train."
    if lazy := [name for name, one in module.named_parameters() if isinstance(one, nn.parameter.UninitializedParameter)]:
        return f"has weights whose shapes are not known before the first batch, such as {lazy[0]}. State their sizes."
    odd = [name for name, value in module.state_dict().items() if not isinstance(value, Tensor) or value.layout != torch.strided]
    if odd:
        return f"keeps something else than dense tensors in its state_dict(), as {odd[0]}, which a checkpoint cannot hold."
    return None


def _checked_logits(module: nn.Module, token_ids: Tensor, vocab_size: int, name: str) -> Tensor:
    """Return the logits of a module, (B, T, V).

    Raises:
        UserError: If it fails, or returns something else.
    """
    shape = tuple(token_ids.shape)
    given = token_ids.clone()
    try:
        output = module(given)
    except Exception as error:  # whatever the user's code raises
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise UserError(
            f"model._target_={name} fails on token ids of the shape {shape} and the type int64: {type(error).__name__}: {reason}"
        ) from error
    logits = logits_of(output)
    if not isinstance(logits, Tensor):
        raise UserError(f"model._target_={name} returns a {type(output).__name__}, but must return logits, a tensor.")
    if not logits.is_floating_point() or logits.ndim != 3 or logits.shape[:2] != shape:
        raise UserError(
            f"model._target_={name} returns {tuple(logits.shape)}, {logits.dtype}, for token ids of the shape {shape}. It must "
            f"return logits for each position: {(*shape, vocab_size)}."
        )
    if logits.shape[2] < vocab_size:
        raise UserError(
            f"model._target_={name} has {logits.shape[2]:,} logits, but the tokenizer has {vocab_size:,} tokens. A parameter "
            "named vocab_size gets their number."
        )
    if not torch.equal(given, token_ids):
        raise UserError(f"model._target_={name} changes the token ids that it is given. Let it change a copy: token_ids.clone().")
    _check_values(logits, name)
    return logits


def _check_values(logits: Tensor, name: str) -> None:
    """Check that logits are neither NaN nor probabilities. A model that returns probabilities would hardly learn.

    Raises:
        UserError: If they are NaN or probabilities.
    """
    values = logits.float()
    if values.isnan().any():
        raise UserError(
            f"model._target_={name} returns logits that are NaN. Look for a division by zero or a missing initial value."
        )
    if values.shape[2] > 1 and bool((values >= 0).all()) and bool(((values.sum(2) - 1).abs() < PROBABILITY_ERROR).all()):
        raise UserError(f"model._target_={name} returns probabilities, but must return logits: leave out its softmax.")


def _differ(one: Tensor, other: Tensor) -> bool:
    """Return whether logits differ by more than rounding explains. Minus infinity equals minus infinity."""
    if not torch.equal(one.isinf(), other.isinf()):
        return True
    one, other = (values.float().masked_fill(values.isinf(), 0.0) for values in (one, other))
    return bool((one - other).abs().amax() > LEAK * one.abs().amax().clamp(min=1e-6))


@contextmanager
def _trial_state(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode within the block, and replace weights of zero, which would hide dependencies on tokens.

    Weights, modes and random numbers are restored afterwards.
    """
    modes = [(part, part.training) for part in module.modules()]
    zeros = [parameter for parameter in module.parameters() if not parameter.any()]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            module.eval()
            for parameter in zeros:
                parameter.normal_(std=PROBE_STD)
            yield
        finally:
            for parameter in zeros:
                parameter.zero_()
            for part, mode in modes:
                part.training = mode
