"""What the tensors of a source show: the architecture that they make, and whether they make one at all."""

from __future__ import annotations

from typing import Any

import torch

from gpt_pretrain.checkpoints.layouts import QKV_PARTS, TensorSlot, gpt2_name, is_linear, is_mask, slot_of
from gpt_pretrain.checkpoints.tensor_files import StoredTensor
from gpt_pretrain.checkpoints.weight_source import WeightSource
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.gpt2 import GPTModel

MOST = {"vocab_size": 10**8, "context_length": 10**8, "emb_dim": 10**6, "n_layers": 1000}  # more is no model, but an attack
HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 36): 20, (1600, 48): 25}  # GPT-2's (emb_dim, n_layers): heads of width 64


def by_slot(source: WeightSource) -> tuple[dict[TensorSlot, StoredTensor], list[str]]:
    """The stored tensors by where they belong, masks left out, and what has no place here."""
    parts: dict[TensorSlot, StoredTensor] = {}
    problems = []
    for name, tensor in source.tensors.items():
        if is_mask(name):
            continue
        place = slot_of(name)
        if place is None:
            problems.append(f"{source.name}: the tensor {name} is not one of a GPT-2's.")
        elif place in parts:
            problems.append(f"{source.name}: the tensor {name} is there twice, under different names.")
        else:
            parts[place] = tensor
            if isinstance(tensor.dtype, str):
                problems.append(f"{source.name}: the tensor {name} holds {tensor.dtype}, not floating-point numbers.")
    if not parts and not problems:
        problems.append(f"{source.name} holds no tensors.")
    return parts, problems


def stored_in_out(parts: dict[TensorSlot, StoredTensor]) -> bool:
    """Whether linear layers are stored (in, out): the one projection to queries, keys and values shows it."""
    shape = next((tensor.shape for place, tensor in parts.items() if place.name.endswith("att.qkv.weight")), (0, 0))
    return len(shape) == 2 and shape[1] == 3 * shape[0]


def infer_architecture(
    source: WeightSource, parts: dict[TensorSlot, StoredTensor], *, in_out: bool, n_heads: int | None
) -> tuple[GPTConfig | None, list[str]]:
    """The architecture that the tensors show and the source's own config declares, and all that does not fit it.

    Where the two disagree, the one that leaves less to complain about is taken to be meant.
    """
    seen = _seen(parts)
    declared = dict(source.declared)
    problems = [
        f"{source.name}: its config says {name}={declared[name]!r}, its tensors show {value}."
        for name, value in seen.items()
        if name in declared and declared[name] != value
    ]
    both = {**declared, **seen}
    lacking = [name for name in ("vocab_size", "context_length", "emb_dim") if name not in both]
    if lacking:
        return None, [*problems, f"{source.name} is no GPT-2: it has no tables of tokens and positions, by the names known here."]
    known_heads = declared.get("n_heads")
    if n_heads is not None and known_heads not in (None, n_heads):
        problems.append(f"n_heads={n_heads}: {source.name} has {known_heads} attention heads.")
    known_heads = known_heads or n_heads or HEADS.get((both["emb_dim"], both["n_layers"]))
    if known_heads is None:
        emb_dim = both["emb_dim"]
        problems.append(
            f"{source.name} does not say how many attention heads it has, and no tensor shows it. Add n_heads=... "
            f"(for train.py model.n_heads=...), a divisor of its emb_dim {emb_dim}"
            + (f"; with GPT-2's heads of 64 it would be {emb_dim // 64}." if emb_dim % 64 == 0 else ".")
        )
        known_heads = 1
    fields = {"qkv_bias": any(place.name.endswith("att.qkv.bias") for place in parts), "tie_embeddings": _tied(source, parts)}
    heads = {"n_heads": known_heads}
    readings = [_reading(source, {**fields, **both, **heads}, parts, in_out)]
    if all(isinstance(declared.get(name, 0), int) and declared.get(name, 0) <= 2 * value + 100 for name, value in seen.items()):
        readings.append(_reading(source, {**fields, **seen, **declared, **heads}, parts, in_out))  # no absurd model is built
    config, misfits = min(readings, key=lambda reading: (reading[0] is None, len(reading[1])))
    return config, problems + misfits


def _seen(parts: dict[TensorSlot, StoredTensor]) -> dict[str, Any]:
    """What shapes and names tell of the architecture."""
    seen: dict[str, Any] = {"n_layers": _count_layers(parts)}
    for table, rows in (("pos_emb", "context_length"), ("tok_emb", "vocab_size")):
        tensor = parts.get(TensorSlot(f"{table}.weight"))
        if tensor is not None and len(tensor.shape) == 2:
            seen[rows], seen["emb_dim"] = tensor.shape
    return seen


def _reading(
    source: WeightSource, fields: dict[str, Any], parts: dict[TensorSlot, StoredTensor], in_out: bool
) -> tuple[GPTConfig | None, list[str]]:
    """An architecture of these fields, and what keeps the tensors from fitting it."""
    if absurd := [name for name, most in MOST.items() if isinstance(fields[name], int) and fields[name] > most]:
        return None, [f"{source.name}: {name}={fields[name]} is more than any model has." for name in absurd]
    try:
        config = GPTConfig(**fields)
    except UserError as error:
        return None, [f"{source.name}: {problem}" for problem in error.problems]
    return config, find_misfits(source, config, parts, in_out)


def _count_layers(parts: dict[TensorSlot, StoredTensor]) -> int:
    """Blocks by their numbers, or by how many there are if the numbers are absurd."""
    numbers = {int(place.name.split(".")[1]) for place in parts if place.name.startswith("trf_blocks.")}
    highest = max(numbers, default=-1) + 1
    return highest if highest <= len(numbers) + 100 else len(numbers)


def _tied(source: WeightSource, parts: dict[TensorSlot, StoredTensor]) -> bool:
    """Whether the output head is the token embedding: there is none, or both are one piece of the file."""
    head, embedding = parts.get(TensorSlot("out_head.weight")), parts.get(TensorSlot("tok_emb.weight"))
    if head is None or embedding is None:
        return True
    return not source.is_safetensors and head.read().data_ptr() == embedding.read().data_ptr()


def find_misfits(source: WeightSource, config: GPTConfig, parts: dict[TensorSlot, StoredTensor], in_out: bool) -> list[str]:
    """All tensors that are missing, unexpected or misshapen for an architecture."""
    wanted: dict[TensorSlot, tuple[int, ...]] = {}
    for name, value in empty_model(config).state_dict().items():
        apart = any(place in parts for place in thirds(name)[1:])
        shape = (value.shape[0] // 3, *value.shape[1:]) if apart else tuple(value.shape)
        for place in thirds(name)[1:] if apart else [TensorSlot(name)]:
            wanted[place] = shape[::-1] if in_out and is_linear(name) else shape
    optional = _optional(config)
    known = optional | wanted
    missing = [place for place in wanted.keys() - parts.keys() if not (source.bias_free and place.name.endswith(".bias"))]
    problems = [f"{source.name}: the tensor {_as_there(place, parts)} is missing." for place in missing]
    problems += [
        f"{source.name}: the tensor {tensor.name} is not one of this model's."
        for place, tensor in parts.items()
        if place not in known
    ]
    problems += [
        f"{source.name}: the tensor {parts[place].name} has shape {parts[place].shape}, the model needs {shape}."
        for place, shape in known.items()
        if place in parts and parts[place].shape != shape
    ]
    if problems:
        return sorted(problems)
    for place in optional.keys() & parts.keys():
        tensor = parts[place].read()
        if place.name == "out_head.weight" and not torch.equal(tensor, parts[TensorSlot("tok_emb.weight")].read()):
            problems.append(f"{source.name}: its config ties the output head to the token embedding, but the two differ.")
        if place.name.endswith(".bias") and tensor.any():
            problems.append(f"{source.name}: the tensor {parts[place].name} is not zero, but the model has qkv_bias=False.")
    return sorted(problems)


def _as_there(place: TensorSlot, parts: dict[TensorSlot, StoredTensor]) -> str:
    """What a missing tensor would be called among these."""
    names = [tensor.name for tensor in parts.values()]
    if not any(".attn." in name or name.endswith("wte.weight") for name in names):
        return str(place)
    name = gpt2_name(place.name)
    return name if any(other.startswith("transformer.") for other in names) else name.removeprefix("transformer.")


def _optional(config: GPTConfig) -> dict[TensorSlot, tuple[int, ...]]:
    """Tensors that a file may have beside the model's own: a tied output head, and zeros in place of no bias."""
    optional: dict[TensorSlot, tuple[int, ...]] = {}
    if config.tie_embeddings:
        optional[TensorSlot("out_head.weight")] = (config.vocab_size, config.emb_dim)
    if not config.qkv_bias:
        optional |= {TensorSlot(f"trf_blocks.{layer}.att.qkv.bias"): (3 * config.emb_dim,) for layer in range(config.n_layers)}
    return optional


def thirds(name: str) -> list[TensorSlot]:
    """A tensor of the model, and its parts where it may be stored in parts."""
    return [TensorSlot(name)] + ([TensorSlot(name, part) for part in QKV_PARTS.values()] if ".att.qkv." in name else [])


def empty_model(config: GPTConfig) -> GPTModel:
    """A model of shapes without memory."""
    with torch.device("meta"):
        return GPTModel(config)
