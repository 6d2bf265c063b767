"""Checks and measurements that hold for every kind of model: causality, kept activations and peak memory."""

from __future__ import annotations

import torch

from gpt_pretrain.model.language_model import LanguageModel


def assert_causal(model: LanguageModel) -> None:
    """Assert that a token changes the logits of its own and of later positions only. The model has 97 tokens."""
    token_ids = torch.randint(0, 97, (1, 16))
    changed = token_ids.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 97
    with torch.no_grad():
        before, after = model(token_ids), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def kept_bytes(model: LanguageModel, token_ids: torch.Tensor, *, precision: str) -> int:
    """Return the bytes that autograd keeps for the backward pass of the hidden states, without the parameters."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    mixed = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), mixed:
        model.hidden_states(token_ids)
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(profile: torch.profiler.profile) -> int:
    """Return the peak of the bytes allocated during a profile, in addition to those allocated before."""
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
