"""Find the one GPT-2 among all tensors of a file, whatever modules of a training program surround it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from gpt_pretrain.checkpoints.formats.layouts import TensorSlot
from gpt_pretrain.checkpoints.recognition.misfits import Misfits, name_some
from gpt_pretrain.checkpoints.recognition.tensor_names import (
    EXTRA_HEADS,
    OTHER_HEADS,
    find_slot,
    foreign_kind,
    head_kind,
    is_causal_mask,
    is_inside_block,
    is_position_list,
    is_training_state,
    without_wrappers,
)
from gpt_pretrain.checkpoints.serialization.tensor_files import StoredTensor
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.shown_values import short_repr

Slots = dict[TensorSlot, StoredTensor]

EMBEDDING, HEAD = TensorSlot("tok_emb.weight"), TensorSlot("out_head.weight")
POSITIONS = TensorSlot("pos_emb.weight")
MAX_NAME = 1000  # characters; wrappers of a training program make names of a few hundred
MAX_MODELS = 20  # models in a file, each of which is compared with the others
# Any number of names may stand for the same numbers. To compare them, FREE_COMPARED numbers may be read, and COMPARED_TIMES for
# each of the model's.
FREE_COMPARED, COMPARED_TIMES = 1_000_000_000, 20
MAX_CLASSES = 50  # A head with at most this many outputs is a classifier's if the vocabulary is larger.
# A second model in a file: an average of the weights, or a model that the training compares itself with.
WELL_KNOWN_COMPANION = re.compile(r"(model_)?(ema|swa)(_model)?|shadow(_params|_model)?")
COMPANION = re.compile(r"(^|[._])(ema|swa|averaged?|avg|shadow|teacher|ref|reference|target|momentum|old|frozen)([._]|$)")


@dataclass
class TensorGroups:
    """The tensors of a file, sorted.

    Args:
        slots: The model's tensors.
        misfits: Reasons why the model cannot be loaded.
        left_out: Names of tensors that the model's output does not depend on, by their kind.
    """

    slots: Slots
    misfits: Misfits = field(default_factory=Misfits)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, kind: str, name: str) -> None:
        """Note a tensor that the model does not need."""
        self.left_out.setdefault(kind, []).append(name)

    def notes(self) -> list[str]:
        """Return a sentence on each kind of tensor that was left out."""
        return [f"{kind} was left out: {name_some(names)}" for kind, names in self.left_out.items()]


def group_tensors(name: str, tensors: Mapping[str, StoredTensor]) -> TensorGroups:
    """Sort the tensors of a file into the model's and others.

    Args:
        name: The source, for messages.

    Raises:
        UserError: If the file holds several models.
    """
    check_name_lengths(name, tensors)
    misfits = Misfits()
    placed, rest = _find_slots(tensors, misfits)
    if (n_models := sum(slot == EMBEDDING for _, slot, _ in placed)) > MAX_MODELS:
        raise UserError(f"{name} holds {n_models:,} models. Save the state_dict() of the one to use to a file of its own.")
    prefix = _model_prefix(name, placed)
    groups = TensorGroups(_fill_slots(prefix, placed, rest, misfits), misfits)
    # The head may be outside of the module that holds everything else.
    base = next((own for own, slot, stored in placed if groups.slots.get(slot) is stored and slot == HEAD), prefix)
    base = base if prefix.startswith(base) else prefix
    companions = {own for own, slot, _ in placed if slot == EMBEDDING and own != prefix and COMPANION.search(own)}
    _judge_rest(groups, rest, base, companions)
    # If tensors share memory, safetensors keeps only the one whose name comes first.
    if EMBEDDING not in groups.slots and HEAD in groups.slots:
        groups.slots[EMBEDDING] = groups.slots.pop(HEAD)
    misfits.causes += _shape_causes(groups.slots)
    if not groups.slots and not misfits:
        misfits.causes.append("it holds no tensors of a GPT-2.")
    if (misfits.unknown or not {EMBEDDING, POSITIONS} <= groups.slots.keys()) and (kind := foreign_kind(tensors)) is not None:
        misfits.causes.append(f"it holds {kind[0]} ({kind[1]}). Only GPT-2 models can be read.")
    return groups


def _find_slots(
    tensors: Mapping[str, StoredTensor], misfits: Misfits
) -> tuple[list[tuple[str, TensorSlot, StoredTensor]], list[StoredTensor]]:
    """Return the tensors with known names, each with its prefix and slot, and the other tensors.

    Causal masks and lists of positions are in neither, since the model computes them. A mask that is not causal is a misfit.
    """
    placed: list[tuple[str, TensorSlot, StoredTensor]] = []
    rest: list[StoredTensor] = []
    for stored in tensors.values():
        if is_causal_mask(stored.name) and _is_square_or_number(stored):
            if not _is_causal(stored):
                misfits.conflicts.append(f"{stored.name} is not a causal mask, as with local attention")
        elif not (isinstance(stored.dtype, str) and is_position_list(stored.name)):
            found = find_slot(stored.name)
            if found is None:
                rest.append(stored)
            else:
                placed.append((*found, stored))
    return placed, rest


def check_name_lengths(name: str, tensors: Iterable[str]) -> None:
    """Check that the names of tensors are short, since each is compared with many patterns.

    Args:
        name: The source, for messages.

    Raises:
        UserError: If a name is too long.
    """
    if (longest := max(tensors, key=len, default="")) and len(longest) > MAX_NAME:
        raise UserError(
            f"{name}: its tensor {short_repr(longest)} has a name of {len(longest):,} characters, more than the limit of "
            f"{MAX_NAME:,}."
        )


def stored_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the sizes of a GPT-2 that can be inferred from the names and shapes of its tensors."""
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if (found := find_slot(name)) is None:
            continue
        slot = found[1]
        if slot.name.startswith("trf_blocks."):
            sizes["n_layers"] = max(sizes.get("n_layers", 0), int(slot.name.split(".")[1]) + 1)
        elif slot in (EMBEDDING, POSITIONS) and len(shape) == 2:
            sizes["emb_dim"] = shape[1]
            sizes["vocab_size" if slot == EMBEDDING else "context_length"] = shape[0]
    return sizes


def _shape_causes(slots: Slots) -> list[str]:
    """Return sentences that explain, by the shapes of embedding and head, why a file is not a whole language model."""
    embedding, head = slots.get(EMBEDDING), slots.get(HEAD)
    if embedding is not None and len(embedding.shape) == 1:
        return [
            f"{embedding.name} has the shape {embedding.shape}, as in a piece of a distributed checkpoint. Combine the pieces "
            "first, for example with DeepSpeed's zero_to_fp32.py."
        ]
    if embedding is None or head is None or len(embedding.shape) != 2 or len(head.shape) != 2:
        return []
    if head.shape[0] == embedding.shape[0] or head.shape[0] >= MAX_CLASSES:
        return []
    return [
        f"its head {head.name} has {head.shape[0]} outputs instead of one for each of {embedding.shape[0]:,} tokens, as a "
        "classifier or a reward model has. It cannot generate text."
    ]


def _model_prefix(name: str, placed: list[tuple[str, TensorSlot, StoredTensor]]) -> str:
    """Return the prefix of the model's tensors, which is the prefix of the token embedding."""
    embeddings: dict[str, StoredTensor] = {}
    for prefix, slot, stored in sorted(placed, key=lambda item: COMPANION.search(item[0]) is not None):
        if slot == EMBEDDING and not any(same_content(stored, other) for other in embeddings.values()):
            embeddings.setdefault(prefix, stored)
    if len(embeddings) > 1:
        own = [prefix for prefix in embeddings if not COMPANION.search(prefix)]
        if len(own) != 1:
            listed = ", ".join(prefix or "no prefix" for prefix in list(embeddings)[:5])
            raise UserError(
                f"{name} holds {len(embeddings)} models ({listed}), and does not state which one to use. "
                "Save the state_dict() of that model to a file of its own."
            )
        return own[0]
    (prefix, _), *_ = Counter(prefix for prefix, *_ in placed).most_common(1) or [("", 0)]
    return next(iter(embeddings), prefix)


def _fill_slots(
    prefix: str, placed: list[tuple[str, TensorSlot, StoredTensor]], rest: list[StoredTensor], misfits: Misfits
) -> Slots:
    """Return the model's tensors by slot. Tensors of other models are added to `rest`."""
    slots: Slots = {}
    left = FREE_COMPARED
    for own_prefix, slot, stored in sorted(placed, key=lambda item: item[0] != prefix):
        if slot not in slots:
            slots[slot] = stored
            left += COMPARED_TIMES * math.prod(stored.shape)
            if isinstance(stored.dtype, str):
                misfits.unreadable.append(f"{stored.name} holds {stored.dtype}")
            continue
        left -= math.prod(stored.shape) if stored.shape == slots[slot].shape else 0
        if left < 0:
            misfits.causes.append(f"it holds far too many copies of tensors, such as {stored.name}.")
            break
        if same_content(stored, slots[slot]):
            continue
        if own_prefix == prefix:
            misfits.conflicts.append(f"{stored.name} and {slots[slot].name} are the same tensor with different values")
        else:
            rest.append(stored)
    return slots


def _judge_rest(groups: TensorGroups, rest: list[StoredTensor], base: str, companions: Collection[str]) -> None:
    """Decide about each tensor outside of the model whether the model's output depends on it.

    Args:
        base: The prefix of the model's tensors.
        companions: The prefixes of second models.
    """
    for stored in rest:
        name = without_wrappers(stored.name)
        inner = name.removeprefix(base)
        if isinstance(stored.dtype, str) and stored.dtype.startswith("a "):
            continue  # a number or a text beside the tensors
        if name.startswith(tuple(companions)) or WELL_KNOWN_COMPANION.fullmatch(inner.partition(".")[0]):
            groups.leave_out("a second model", stored.name)
        elif is_inside_block(inner):
            groups.misfits.unknown.append(stored.name)
        elif (head := head_kind(inner, EXTRA_HEADS)) is not None:
            groups.leave_out(head, stored.name)
        elif (head := head_kind(inner, OTHER_HEADS)) is not None:
            if HEAD in groups.slots:
                groups.leave_out(head, stored.name)
            else:
                cause = f"it has {head} ({stored.name}) instead of one for tokens, so it cannot generate text."
                groups.misfits.causes.append(cause)
        elif is_training_state(inner) or (not name.startswith(base) and len(stored.shape) < 2 and isinstance(stored.dtype, str)):
            groups.leave_out("the state of a loss, a metric or a counter", stored.name)
        else:
            groups.misfits.unknown.append(stored.name)


def same_content(first: StoredTensor, second: StoredTensor) -> bool:
    """Return whether two tensors have equal values after both are rounded to the less precise dtype."""
    if first.shape != second.shape or isinstance(first.dtype, str) or isinstance(second.dtype, str):
        return False
    one, other = first.read(), second.read()
    dtype = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(one.to(dtype), other.to(dtype))


def _is_square_or_number(stored: StoredTensor) -> bool:
    """Return whether a tensor has the shape of a mask over positions, or is a single number: the score of a masked position."""
    shape = [size for size in stored.shape if size != 1]
    return not shape or (len(shape) == 2 and shape[0] == shape[1])


def _is_causal(stored: StoredTensor) -> bool:
    """Return whether a mask lets each position see itself and all before it."""
    if len([size for size in stored.shape if size != 1]) < 2:
        return True
    mask = stored.read().squeeze() != 0
    everything = torch.ones_like(mask)
    # GPT-2's masks mark the positions that are seen, and chapter 5's masks those that are hidden.
    return bool(torch.equal(mask, everything.tril()) or torch.equal(mask, everything.triu(1)))
