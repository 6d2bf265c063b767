"""Infer the architecture of stored tensors, and check that they fit it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from gpt_pretrain.checkpoints.formats.layouts import TensorSlot, gpt2_name, is_linear, possible_slots
from gpt_pretrain.checkpoints.recognition.misfits import Misfits
from gpt_pretrain.checkpoints.recognition.tensor_groups import EMBEDDING, HEAD, Slots, same_content
from gpt_pretrain.checkpoints.weight_source import WeightSource
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.build import empty_model
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.system.shown_values import short_repr

EMBEDDINGS = {EMBEDDING, TensorSlot("pos_emb.weight")}
# No real model is larger. Larger values come from damaged or hostile files, and would exhaust the memory.
SIZE_LIMITS = {"vocab_size": 10**8, "context_length": 10**8, "emb_dim": 10**6, "n_layers": 1000}
# GPT-2's attention heads by (emb_dim, n_layers); all are 64 wide.
GPT2_HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 36): 20, (1600, 48): 25}

log = logging.getLogger(__name__)


def has_transposed_linears(slots: Slots) -> bool:
    """Return whether linear layers are stored as (in, out). The shapes of the layers that are not square decide."""
    for ending, wider in (("att.qkv.weight", 3), ("ff.layers.0.weight", 4)):
        shape = next((stored.shape for slot, stored in slots.items() if slot.name.endswith(ending) and slot.part is None), ())
        if len(shape) == 2:
            return shape[1] == wider * shape[0]
    return False


def has_norms_without_bias(slots: Slots) -> bool:
    """Return whether the norms of a GPT-2 lack a bias while linear layers have one. nanoGPT leaves out all biases, or none."""
    kinds = {_name_in_block(slot) for slot in slots if slot.name.startswith("trf_blocks.")}
    return "norm1.weight" in kinds and "norm1.bias" not in kinds and "ff.layers.0.bias" in kinds


def infer_architecture(
    source: WeightSource, slots: Slots, misfits: Misfits, *, transposed: bool, n_heads: int | None
) -> GPTConfig:
    """Infer the architecture from the tensors and from the source's own config.

    Args:
        misfits: Misfits that are known already.
        transposed: Linear layers are stored as (in, out).
        n_heads: Attention heads, if the user has specified them.

    Raises:
        UserError: If there is no architecture that the tensors fit.
    """
    if misfits.causes:
        raise UserError(misfits.message(source.name))
    seen = _architecture_from_shapes(slots)
    declared = dict(source.declared)
    fields = {
        "qkv_bias": any(slot.name.endswith("att.qkv.bias") for slot in slots),
        "tie_embeddings": _is_tied(source, slots),
        **declared,
        **seen,
    }
    if (
        any(name not in fields for name in ("vocab_size", "context_length", "emb_dim"))
        or not slots.keys() & EMBEDDINGS
        or (seen["n_layers"] == 0 and "n_layers" not in declared)
    ):
        raise UserError(_no_gpt2(source, slots))
    _check_sizes(source, fields)
    fields["n_heads"], head_problems = _count_heads(source, fields, n_heads)
    contradictions = {name: value for name, value in seen.items() if name in declared and declared[name] != value}
    if contradictions:
        raise UserError(_contradiction(source, slots, misfits, fields, contradictions, transposed=transposed))
    config, misfits = _fit_fields(fields, slots, misfits, transposed=transposed)
    if isinstance(config, UserError):
        raise UserError([f"{source.name}: {problem}" for problem in config.problems]) from config
    if problems := [misfits.message(source.name)] * bool(misfits) + head_problems:
        raise UserError(problems)
    return config


def _fit_fields(
    fields: dict[str, Any], slots: Slots, misfits: Misfits, *, transposed: bool
) -> tuple[GPTConfig | UserError, Misfits]:
    """Build an architecture from fields. Return it, or the error, and the misfits of the tensors."""
    try:
        config = GPTConfig(**fields)
    except UserError as error:
        return error, misfits
    return config, misfits + find_misfits(config, slots, transposed=transposed)


def _contradiction(
    source: WeightSource,
    slots: Slots,
    misfits: Misfits,
    fields: dict[str, Any],
    seen: dict[str, Any],
    *,
    transposed: bool,
) -> str:
    """Return the message about a config that disagrees with the tensors' shapes.

    Either a few tensors have the wrong shape, or all of them have shapes that contradict the config.

    Args:
        fields: The architecture that the tensors show.
        seen: The fields of it that the config contradicts.
    """
    stored = {name: source.declared[name] for name in seen}
    # A model is built to compare all shapes, but not an absurdly large one.
    if all(isinstance(stored[name], int) and stored[name] <= 2 * value + 100 for name, value in seen.items()):
        by_tensors = _fit_fields(fields, slots, misfits, transposed=transposed)
        by_config = _fit_fields(fields | stored, slots, misfits, transposed=transposed)
        fits = isinstance(by_tensors[0], GPTConfig) and len(by_tensors[1]) <= len(by_config[1])
        if isinstance(by_config[0], GPTConfig) and not fits:
            return by_config[1].message(source.name)
    config_says = ", ".join(f"{name}={short_repr(value)}" for name, value in stored.items())
    tensors_say = ", ".join(f"{name}={value}" for name, value in seen.items())
    return f"{source.name}: its config has {config_says}, but its tensors have {tensors_say}."


def find_misfits(config: GPTConfig, slots: Slots, *, transposed: bool) -> Misfits:
    """List all tensors that are missing, unexpected or misshapen for an architecture.

    A bias that no block has is zero, not missing.

    Args:
        transposed: Linear layers are stored as (in, out).
    """
    required: dict[TensorSlot, tuple[int, ...]] = {}
    for name, value in empty_model(config).state_dict().items():
        split = any(slot in slots for slot in possible_slots(name)[1:])
        for slot in possible_slots(name)[1:] if split else [TensorSlot(name)]:
            shape = tuple(value.shape) if slot.part is None else (config.qkv_rows[slot.part], *value.shape[1:])
            required[slot] = shape[::-1] if transposed and is_linear(name) else shape
    optional = _optional_slots(config)
    known = optional | required
    stored_kinds = {_name_in_block(slot) for slot in slots}
    missing = [slot for slot in required.keys() - slots.keys() if not _is_zero(slot, stored_kinds)]
    misfits = Misfits(
        missing=_stored_names(missing, slots),
        unknown=[tensor.name for slot, tensor in slots.items() if slot not in known],
        misshapen=[
            f"{slots[slot].name} has {slots[slot].shape}, but the model needs {shape}"
            for slot, shape in known.items()
            if slot in slots and slots[slot].shape != shape
        ],
    )
    return misfits or Misfits(conflicts=_conflicts(slots, optional))


def _is_zero(slot: TensorSlot, stored_kinds: set[str]) -> bool:
    """Return whether a missing tensor is a bias that no block of the stored model has."""
    kinds = {"norm1.bias", "norm2.bias"} if slot.name == "final_norm.bias" else {_name_in_block(slot)}
    return slot.name.endswith(".bias") and not kinds & stored_kinds


def _name_in_block(slot: TensorSlot) -> str:
    """Return the name of a block's tensor within its block."""
    return slot.name.split(".", 2)[-1]


def _no_gpt2(source: WeightSource, slots: Slots) -> str:
    """Return the message about tensors if too few of them have names of a known layout."""
    known = {stored.name for stored in slots.values()}
    names = [name for name in source.tensors if name not in known]
    others = "1 tensor is named {}." if len(names) == 1 else f"{len(names):,} tensors have other names, such as {{}}."
    example = f" {others.format(short_repr(names[0]))}" if names else ""
    if EMBEDDING not in slots:
        return f"{source.name} is not a GPT-2: it has no token and position embeddings with a known name.{example}"
    found = f"{source.name} is not a GPT-2: it has a token embedding ({slots[EMBEDDING].name}), but no"
    for slot in EMBEDDINGS & slots.keys():
        if len(shape := slots[slot].shape) != 2:
            return f"{source.name} is not a GPT-2: its embedding {slots[slot].name} has the shape {shape}, not rows and columns."
    if TensorSlot("pos_emb.weight") in slots:
        return f"{found} transformer blocks with known names.{example}"
    if not names:  # as in torch.save(model.state_dict()) of a modern model, whose number of heads no tensor shows
        return (
            f"{found} position embedding. If it is a modern model of this program, give its run's folder or checkpoint instead, "
            "which also holds the architecture."
        )
    return f"{found} position embedding, which GPT-2 has and models with rotary or fixed positions do not.{example}"


def _check_sizes(source: WeightSource, fields: dict[str, Any]) -> None:
    """Check that no size is absurd. A model of that size would exhaust the memory."""
    absurd = [name for name, most in SIZE_LIMITS.items() if isinstance(fields[name], int) and fields[name] > most]
    if absurd:
        raise UserError(
            f"{source.name}: {name}={short_repr(fields[name])} exceeds the limit of {SIZE_LIMITS[name]:,}." for name in absurd
        )


def _architecture_from_shapes(slots: Slots) -> dict[str, Any]:
    """Return the fields of the architecture that the tensors' names and shapes show."""
    seen: dict[str, Any] = {"n_layers": _count_layers(slots)}
    for embedding, rows in (("pos_emb", "context_length"), ("tok_emb", "vocab_size")):
        tensor = slots.get(TensorSlot(f"{embedding}.weight"))
        if tensor is not None and len(tensor.shape) == 2:
            seen[rows], seen["emb_dim"] = tensor.shape
    return seen


def _count_heads(source: WeightSource, known: dict[str, Any], n_heads: int | None) -> tuple[Any, list[str]]:
    """Return the number of attention heads, and the problems with it.

    The first of these counts: the source's own config, the user's n_heads, a number that the file mentions, GPT-2's.
    """
    problems = []
    stored = known.get("n_heads")
    if n_heads is not None and stored not in (None, n_heads):
        problems.append(f"n_heads={n_heads}: {source.name} has {short_repr(stored)} attention heads. Leave out n_heads.")
    heads = stored if stored is not None else n_heads
    likely = source.likely_heads
    if heads is None and likely is not None and likely > 0 and known["emb_dim"] % likely == 0:
        log.info("%s: n_heads=%d, from its settings", source.name, likely)
        heads = likely
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


def _count_layers(slots: Slots) -> int:
    """Return the number of blocks: the highest block number plus one, or the blocks before the first gap if that is absurd."""
    numbers = {int(slot.name.split(".")[1]) for slot in slots if slot.name.startswith("trf_blocks.")}
    highest = max(numbers, default=-1) + 1
    return highest if highest <= len(numbers) + 100 else next(number for number in range(highest) if number not in numbers)


def _is_tied(source: WeightSource, slots: Slots) -> bool:
    """Return whether the output head is the token embedding: it is not stored, or it is stored twice.

    A file of PyTorch shows which tensors share memory. If they share none, equal values decide, except in chapter 5's model: its
    head is a separate tensor that starts with the values of the embedding.
    """
    head, embedding = slots.get(HEAD), slots.get(EMBEDDING)
    if head is None or embedding is None:
        return True
    if not source.is_safetensors and head.read().data_ptr() == embedding.read().data_ptr():
        return True
    return (source.is_safetensors or not head.name.endswith("out_head.weight")) and same_content(head, embedding)


def _optional_slots(config: GPTConfig) -> dict[TensorSlot, tuple[int, ...]]:
    """Return the tensors that a file may hold in addition to the model's: a tied output head, and zeros for absent biases."""
    optional: dict[TensorSlot, tuple[int, ...]] = {}
    if config.kind != "gpt2":
        return optional
    if config.tie_embeddings:
        optional[TensorSlot("out_head.weight")] = (config.vocab_size, config.emb_dim)
    optional[TensorSlot("out_head.bias")] = (config.vocab_size,)
    if not config.qkv_bias:
        optional |= {TensorSlot(f"trf_blocks.{layer}.att.qkv.bias"): (3 * config.emb_dim,) for layer in range(config.n_layers)}
    return optional


def _conflicts(slots: Slots, optional: dict[TensorSlot, tuple[int, ...]]) -> list[str]:
    """List the optional tensors whose values contradict the architecture."""
    problems = []
    for slot in optional.keys() & slots.keys():
        name = slots[slot].name
        if slot == HEAD and not same_content(slots[slot], slots[EMBEDDING]):
            problems.append(
                f"its config ties the output head to the token embedding, but {name} differs from it; "
                "set tie_word_embeddings to false in its config.json to use the separate head"
            )
        if slot.name.endswith(".bias") and slots[slot].read().any():
            problems.append(
                f"{name} is not zero, but "
                + ("GPT-2's output head has no bias" if slot.name == "out_head.bias" else "the model has qkv_bias=False")
            )
    return problems


def _stored_names(missing: Iterable[TensorSlot], slots: Slots) -> list[str]:
    """Return the names that missing tensors would have in the same file as others."""
    names = [tensor.name for tensor in slots.values()]
    if not any(".attn." in name or name.endswith("wte.weight") for name in names):
        return [str(slot) for slot in missing]
    prefix = "" if any(other.startswith("transformer.") for other in names) else "transformer."
    return [gpt2_name(slot.name).removeprefix(prefix) for slot in missing]
