"""Infer the architecture of stored tensors, and check that they fit it."""

from __future__ import annotations

from typing import Any

import torch

from gpt_pretrain.checkpoints.layouts import TensorSlot, find_slot, gpt2_name, is_causal_mask, is_linear, possible_slots
from gpt_pretrain.checkpoints.tensor_files import StoredTensor
from gpt_pretrain.checkpoints.weight_source import WeightSource
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.gpt2 import empty_model
from gpt_pretrain.system.reading import short_repr

Slots = dict[TensorSlot, StoredTensor]

# No real model is larger; larger values come from damaged or hostile files and would exhaust memory.
SIZE_LIMITS = {"vocab_size": 10**8, "context_length": 10**8, "emb_dim": 10**6, "n_layers": 1000}
# GPT-2's attention heads by (emb_dim, n_layers); all are 64 wide.
GPT2_HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 36): 20, (1600, 48): 25}


def group_by_slot(source: WeightSource) -> tuple[Slots, list[str]]:
    """Map each slot to its stored tensor, without causal masks.

    Returns:
        The tensors by slot, and the problems with tensors that have no slot.
    """
    slots: Slots = {}
    problems = []
    for name, tensor in source.tensors.items():
        if is_causal_mask(name):
            continue
        slot = find_slot(name)
        if slot is None:
            problems.append(f"{source.name}: the tensor {name} does not belong to a GPT-2.")
        elif slot in slots:
            problems.append(f"{source.name}: the tensor {name} is a duplicate of {slots[slot].name}.")
        else:
            slots[slot] = tensor
            if isinstance(tensor.dtype, str):
                problems.append(f"{source.name}: the tensor {name} holds {tensor.dtype}, not floating-point numbers.")
    if not slots and not problems:
        problems.append(f"{source.name} holds no tensors.")
    return slots, problems


def has_transposed_linears(slots: Slots) -> bool:
    """Return whether linear layers are stored as (in, out), which the shape of the joint query-key-value projection shows."""
    shape = next((tensor.shape for slot, tensor in slots.items() if slot.name.endswith("att.qkv.weight")), (0, 0))
    return len(shape) == 2 and shape[1] == 3 * shape[0]


def infer_architecture(
    source: WeightSource, slots: Slots, *, transposed: bool, n_heads: int | None
) -> tuple[GPTConfig | None, list[str]]:
    """Infer the architecture from the tensors and from the source's own config.

    If the two disagree, the reading that leaves fewer misfits is returned.

    Args:
        transposed: Linear layers are stored as (in, out).
        n_heads: Attention heads, if the user has specified them.

    Returns:
        The architecture, or None if there is none, and all problems.
    """
    seen = _architecture_from_shapes(slots)
    declared = dict(source.declared)
    problems = [
        f"{source.name}: its config has {name}={short_repr(declared[name])}, but its tensors have {name}={value}."
        for name, value in seen.items()
        if name in declared and declared[name] != value
    ]
    both = {**declared, **seen}
    if any(name not in both for name in ("vocab_size", "context_length", "emb_dim")):
        return None, [*problems, f"{source.name} is not a GPT-2: it has no token and position embeddings with a known name."]
    heads, head_problems = _count_heads(source, both, n_heads)
    problems += head_problems
    fields = {"qkv_bias": any(slot.name.endswith("att.qkv.bias") for slot in slots), "tie_embeddings": _is_tied(source, slots)}
    candidates = [_check_candidate(source, {**fields, **both, "n_heads": heads}, slots, transposed=transposed)]
    # The declared sizes are only tried if they are close to the tensors' sizes, so that no absurdly large model is built.
    if all(isinstance(declared.get(name, 0), int) and declared.get(name, 0) <= 2 * value + 100 for name, value in seen.items()):
        candidates.append(
            _check_candidate(source, {**fields, **seen, **declared, "n_heads": heads}, slots, transposed=transposed)
        )
    config, misfits = min(candidates, key=lambda candidate: (candidate[0] is None, len(candidate[1])))
    return config, problems + misfits


def find_misfits(source: WeightSource, config: GPTConfig, slots: Slots, *, transposed: bool) -> list[str]:
    """List all tensors that are missing, unexpected or misshapen for an architecture.

    Args:
        transposed: Linear layers are stored as (in, out).
    """
    required: dict[TensorSlot, tuple[int, ...]] = {}
    for name, value in empty_model(config).state_dict().items():
        split = any(slot in slots for slot in possible_slots(name)[1:])
        shape = (value.shape[0] // 3, *value.shape[1:]) if split else tuple(value.shape)
        for slot in possible_slots(name)[1:] if split else [TensorSlot(name)]:
            required[slot] = shape[::-1] if transposed and is_linear(name) else shape
    optional = _optional_slots(config)
    known = optional | required
    missing = [slot for slot in required.keys() - slots.keys() if not (source.bias_free and slot.name.endswith(".bias"))]
    problems = [f"{source.name}: the tensor {_stored_name(slot, slots)} is missing." for slot in missing]
    problems += [
        f"{source.name}: the tensor {tensor.name} does not belong to this model."
        for slot, tensor in slots.items()
        if slot not in known
    ]
    problems += [
        f"{source.name}: the tensor {slots[slot].name} has shape {slots[slot].shape}, but the model needs {shape}."
        for slot, shape in known.items()
        if slot in slots and slots[slot].shape != shape
    ]
    return sorted(problems or _conflicts(source, slots, optional))


def _architecture_from_shapes(slots: Slots) -> dict[str, Any]:
    """Return the fields of the architecture that the tensors' names and shapes show."""
    seen: dict[str, Any] = {"n_layers": _count_layers(slots)}
    for embedding, rows in (("pos_emb", "context_length"), ("tok_emb", "vocab_size")):
        tensor = slots.get(TensorSlot(f"{embedding}.weight"))
        if tensor is not None and len(tensor.shape) == 2:
            seen[rows], seen["emb_dim"] = tensor.shape
    return seen


def _count_heads(source: WeightSource, known: dict[str, Any], n_heads: int | None) -> tuple[Any, list[str]]:
    """Return the number of attention heads that is declared, specified or GPT-2's, and the problems with it."""
    problems = []
    stored = known.get("n_heads")
    if n_heads is not None and stored not in (None, n_heads):
        problems.append(f"n_heads={n_heads}: {source.name} has {short_repr(stored)} attention heads.")
    heads = stored if stored is not None else n_heads
    if heads is None:
        heads = GPT2_HEADS.get((known["emb_dim"], known["n_layers"]))
    if heads is None:
        emb_dim = known["emb_dim"]
        problems.append(
            f"{source.name} does not state its number of attention heads, and the tensors do not show it. Add n_heads=... "
            f"(for train.py model.n_heads=...), a divisor of its emb_dim={emb_dim}"
            + (f"; with heads of width 64, as in GPT-2, it is {emb_dim // 64}." if emb_dim % 64 == 0 else ".")
        )
        heads = 1
    return heads, problems


def _check_candidate(
    source: WeightSource, fields: dict[str, Any], slots: Slots, *, transposed: bool
) -> tuple[GPTConfig | None, list[str]]:
    """Build an architecture from fields, and list the reasons why the tensors do not fit it."""
    if absurd := [name for name, most in SIZE_LIMITS.items() if isinstance(fields[name], int) and fields[name] > most]:
        return None, [
            f"{source.name}: {name}={short_repr(fields[name])} exceeds the limit of {SIZE_LIMITS[name]:,}." for name in absurd
        ]
    try:
        config = GPTConfig(**fields)
    except UserError as error:
        return None, [f"{source.name}: {problem}" for problem in error.problems]
    return config, find_misfits(source, config, slots, transposed=transposed)


def _count_layers(slots: Slots) -> int:
    """Return the highest block number + 1, or the number of blocks if the highest number is absurd."""
    numbers = {int(slot.name.split(".")[1]) for slot in slots if slot.name.startswith("trf_blocks.")}
    highest = max(numbers, default=-1) + 1
    return highest if highest <= len(numbers) + 100 else len(numbers)


def _is_tied(source: WeightSource, slots: Slots) -> bool:
    """Return whether the output head is the token embedding: it is not stored, or both share memory in the file."""
    head, embedding = slots.get(TensorSlot("out_head.weight")), slots.get(TensorSlot("tok_emb.weight"))
    if head is None or embedding is None:
        return True
    return not source.is_safetensors and head.read().data_ptr() == embedding.read().data_ptr()


def _optional_slots(config: GPTConfig) -> dict[TensorSlot, tuple[int, ...]]:
    """Return the tensors that a file may hold in addition to the model's: a tied output head, and zeros for absent biases."""
    optional: dict[TensorSlot, tuple[int, ...]] = {}
    if config.tie_embeddings:
        optional[TensorSlot("out_head.weight")] = (config.vocab_size, config.emb_dim)
    if not config.qkv_bias:
        optional |= {TensorSlot(f"trf_blocks.{layer}.att.qkv.bias"): (3 * config.emb_dim,) for layer in range(config.n_layers)}
    return optional


def _conflicts(source: WeightSource, slots: Slots, optional: dict[TensorSlot, tuple[int, ...]]) -> list[str]:
    """List the optional tensors whose values contradict the architecture."""
    problems = []
    for slot in optional.keys() & slots.keys():
        tensor = slots[slot].read()
        if slot.name == "out_head.weight" and not torch.equal(tensor, slots[TensorSlot("tok_emb.weight")].read()):
            problems.append(f"{source.name}: its config ties the output head to the token embedding, but the two differ.")
        if slot.name.endswith(".bias") and tensor.any():
            problems.append(f"{source.name}: the tensor {slots[slot].name} is not zero, but the model has qkv_bias=False.")
    return problems


def _stored_name(slot: TensorSlot, slots: Slots) -> str:
    """Return the name that a missing tensor would have in the same file as these."""
    names = [tensor.name for tensor in slots.values()]
    if not any(".attn." in name or name.endswith("wte.weight") for name in names):
        return str(slot)
    name = gpt2_name(slot.name)
    return name if any(other.startswith("transformer.") for other in names) else name.removeprefix("transformer.")
