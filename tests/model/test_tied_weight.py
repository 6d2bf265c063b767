"""A tied weight has one gradient, which lies in the memory of the output head's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpt_pretrain.evaluation.loss import next_token_loss
from gpt_pretrain.model.kernels.loss import linear_cross_entropy
from tests.conftest import tiny_model


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_embedding_s_rows_are_added_in_the_memory_of_the_head_s_gradient(dtype: torch.dtype, batches: int) -> None:
    model = tiny_model(vocab_size=5000, emb_dim=64).to(dtype)
    model.tok_emb.sparse = True
    token_ids, targets = torch.randint(9, (2, 8)), torch.randint(5000, (2, 8))

    def added_by_autograd() -> Tensor:
        hidden = model.hidden_states(token_ids)
        return linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, targets.flatten())

    ends = []
    for compute in (added_by_autograd, lambda: next_token_loss(model, token_ids, targets)):
        model.zero_grad()
        for _ in range(batches):
            largest = largest_of_backward(compute())
        assert (largest < model.tok_emb.weight.nbytes) is (compute is not added_by_autograd)
        ends.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(ends[0]) == len([*model.parameters()])
    assert all(torch.equal(added, split) for added, split in zip(*ends, strict=True))


def largest_of_backward(loss: Tensor) -> int:
    """Return the bytes of the largest memory block that the backward pass takes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss.backward()  # type: ignore[no-untyped-call]
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    return max(event.nbytes() for event in events if event.name() == "[memory]")
