"""Find the weights in a file of another program, and the settings beside them that describe the model.

A file may hold the tensors directly, under any key, or in a whole module that was saved with its classes. An `InertObject` stands
for each object of a class: its attributes are data, and no class is imported.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_pretrain.checkpoints.formats.layouts import NANOGPT_FIELDS, from_hf_config, from_nanogpt_args
from gpt_pretrain.checkpoints.formats.stated_settings import HEAD_COUNTS, LAYER_NORM_EPS, as_count, other_settings, stated_gelu
from gpt_pretrain.checkpoints.recognition.misfits import name_some
from gpt_pretrain.checkpoints.recognition.tensor_groups import COMPANION, EMBEDDING, stored_sizes
from gpt_pretrain.checkpoints.recognition.tensor_names import find_slot
from gpt_pretrain.checkpoints.serialization.tensor_files import read_torch_content, read_torch_file
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.pickle_rules import InertObject, PickledName
from gpt_pretrain.system.shown_values import describe_value, short_repr

MAX_DEPTH = 12  # of settings around and inside a model; whole modules are nested to about eight levels
MAX_NODES = 200_000
MAX_FOUND, MAX_MODULES = 100, 20  # state dicts that are compared, and whole modules that are searched for tensors
MAX_NAME = 200  # characters of a key that become part of a name; a file can use a long key many times
# Characters of the joined names of all values, where each value's own name counts as MAX_NAME. A file holds the names that they
# share only once. A large module has 5,000 parts and tensors, a large state dict 46,000.
MAX_NAMES = 10_000_000
STATE_DICT_KEYS = ("model_state_dict", "state_dict", "model", "module", "net", "model_state", "weights")
# Only these settings are read. The tensors show all others, and sizes in a file's settings may be out of date.
TOLD = ("n_heads", "drop_rate", "gelu_approximate")
# The form of GELU by the name of its class in a whole module.
ACTIVATIONS = {
    **dict.fromkeys(("NewGELU", "NewGELUActivation", "FastGELUActivation", "PytorchGELUTanh", "GELUTanh"), "tanh"),
    "GELUActivation": "none",
    "GELU": "tanh",  # a class of one's own, as in chapter 4
}
TORCH_GELU = "torch.nn.modules.activation.GELU"
OTHER_ACTIVATIONS = re.compile(r"\w*(ReLU|SiLU|SELU|CELU|ELU|GLU|QuickGELU|ClippedGELU|Mish|Tanh|Sigmoid|Swish)\w*")

TENSOR_REBUILDERS = "torch._utils._rebuild_"  # the beginning of the functions that pickles call for a tensor
# The class of tensors that are divided among devices, and the message about a file of them.
DISTRIBUTED_TENSOR = "torch.distributed.tensor.DTensor"
IN_PIECES = (
    "holds tensors that are divided among devices (DTensor), of which it has one device's part. Save the whole ones: "
    "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))"
)

KeyPath = tuple[Any, ...]  # the keys and indices that lead to a part of a file; a joined text would copy long keys many times


class AmbiguousWeightsError(ValueError):
    """A file holds several models. The message leaves out the file's name, which the caller adds."""


@dataclass
class FileContent:
    """The weights in a file, and what the file states about them.

    Args:
        tensors: A state dict. Other values may be among its tensors.
        whole: Everything in the file, if that is a dict.
        told: Fields of `GPTConfig` that the file's settings or modules state.
        likely_heads: The number of attention heads, if the file mentions only one number.
        problems: Reasons why GPTModel cannot be this model.
        others: The keys of other weights in the file.
    """

    tensors: dict[str, Any]
    told: dict[str, Any] = field(default_factory=dict)
    likely_heads: int | None = None
    problems: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    whole: dict[str, Any] = field(default_factory=dict)


def read_weights(path: Path) -> FileContent:
    """Read a file of PyTorch, and find the weights in it.

    Raises:
        UserError: If the file cannot be read, or holds no GPT-2 that can be read without its classes.
    """
    content, inert = read_torch_content(path)
    try:
        weights = find_weights(content)
    except AmbiguousWeightsError as error:
        raise UserError(f"{path} {error}") from error
    if inert and (weights is None or is_own_checkpoint(content)):
        if any(_is_divided(node) for _, node in _nodes(content, inside_modules=True)):
            raise UserError(f"{path} {IN_PIECES}")
        read_torch_file(path)  # The error that this raises names what the file needs.
    if weights is not None and any(_is_other_tensor(name, value) for name, value in weights.tensors.items()):
        read_torch_file(path)
    if weights is None:
        if not isinstance(content, dict):
            raise UserError(f"{path} holds {describe_value(content)}, not a dict of tensors.")
        inner = [content[key] for key in STATE_DICT_KEYS if isinstance(content.get(key), dict)]
        weights = FileContent(_flatten(inner[0] if inner else content))
    if isinstance(content, dict):
        weights.whole = content
    return weights


def is_own_checkpoint(content: Any) -> bool:
    """Return whether this program wrote a checkpoint, by its keys."""
    return isinstance(content, dict) and "architecture" in content and "state_dict" in content


def find_weights(content: Any) -> FileContent | None:
    """Find the state dict or the whole module of a GPT-2 in the content of a file. Return None if there is none.

    Raises:
        AmbiguousWeightsError: If there are several, and nothing shows which one is meant.
    """
    found: dict[KeyPath, tuple[dict[str, Any], InertObject | None]] = {}
    n_modules = 0
    for path, node in _nodes(content, inside_modules=False):
        if len(found) == MAX_FOUND:
            break
        if isinstance(node, InertObject) and _is_module(node):
            n_modules += 1  # Modules may share their parts, so searching each of them may visit the whole file.
            tensors = _flatten_module(node) if n_modules <= MAX_MODULES else {}
            if _has_embedding(tensors):
                found[path] = tensors, node
        elif isinstance(node, dict) and _has_embedding(node):
            found[path] = node, None
    if not found:
        return None
    best, *others = sorted(found, key=_rank)
    tensors, module = found[best]
    rivals = [path for path in others if _rank(path) == _rank(best) and not _are_same(found[path][0], tensors)]
    if rivals:
        listed = name_some([_join(path) for path in (best, *rivals)])
        raise AmbiguousWeightsError(
            f"holds {len(rivals) + 1} models ({listed}), and does not state which one to use. "
            "Save the state_dict() of that model to a file of its own."
        )
    weights = FileContent(tensors, others=[_join(path) for path in others if found[path][0] is not tensors])
    _read_settings(content, weights)
    if module is not None:
        _read_module(module, weights)
    return weights


def _rank(path: KeyPath) -> tuple[bool, int, int]:
    """Return a sort key for the preference among weights: no averages, then well-known keys, then little nesting."""
    key = path[-1] if path else ""
    known = STATE_DICT_KEYS.index(key) if key in STATE_DICT_KEYS else len(STATE_DICT_KEYS)
    return any(COMPANION.search(_key_text(part)) for part in path), max(len(path), 1), known


def _are_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two state dicts hold the same weights."""
    tensors = [value for value in one.values() if isinstance(value, Tensor)]
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > 2 * sum(stored.values()):
        return False  # Comparing could take forever: an expanded tensor repeats its storage any number of times.
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, Tensor) and isinstance(other[name], Tensor) else True
        for name, value in one.items()
    )


def _join(path: KeyPath) -> str:
    """Return the keys that lead to a part of a file as one text, for a message."""
    return ".".join(map(_key_text, path))


def _key_text(key: Any) -> str:
    """Return the beginning of a key as text."""
    return key[:MAX_NAME] if isinstance(key, str) else short_repr(key)


def _nodes(content: Any, *, inside_modules: bool) -> Iterator[tuple[KeyPath, Any]]:
    """Yield each container and object once, with the keys that lead to it. Outer ones come first."""
    waiting: list[tuple[KeyPath, Any]] = [((), content)]
    seen: set[int] = set()
    for path, node in waiting:
        if id(node) in seen or not isinstance(node, dict | list | tuple | InertObject):
            continue
        seen.add(id(node))
        yield path, node
        if len(path) >= MAX_DEPTH or len(waiting) > MAX_NODES:
            continue
        if isinstance(node, InertObject):
            if not _is_module(node) or inside_modules:
                waiting += [(path, part) for part in (node.state, node.items, node.arguments)]
        else:
            items = node.items() if isinstance(node, dict) else enumerate(node)
            nested = (((*path, key), value) for key, value in items if _is_nested(value))
            waiting += itertools.islice(nested, MAX_NODES)  # A container takes one byte in the file, and 200 bytes here.


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict | list | tuple | InertObject)


def _has_embedding(tensors: dict[Any, Any]) -> bool:
    return any(
        isinstance(value, Tensor) and isinstance(name, str) and (found := find_slot(name)) is not None and found[1] == EMBEDDING
        for name, value in tensors.items()
    )


def _flatten(content: dict[str, Any]) -> dict[str, Any]:
    """Return the values of nested dicts under joined names, by which tensors are recognized; none if they are far too many."""
    values, left = dict[str, Any](), MAX_NAMES
    for path, node in itertools.islice(_nodes(content, inside_modules=False), MAX_FOUND):
        if isinstance(node, dict):
            left -= _names_length(path, node)
            if left < 0:
                return {}
            values |= {_join((*path, name)): value for name, value in node.items() if not _is_nested(value)}
    return values


def _names_length(path: KeyPath, group: dict[str, Any]) -> int:
    """Return the most characters of all names in a group, each joined with the keys that lead to it."""
    return len(group) * (MAX_NAME + len(_join(path)))


def _is_other_tensor(name: Any, value: Any) -> bool:
    """Return whether a tensor of the model is stored in an unsupported form, such as sparse or quantized."""
    is_rebuilt = isinstance(value, InertObject) and value.name.startswith(TENSOR_REBUILDERS)
    return is_rebuilt and isinstance(name, str) and find_slot(name) is not None


def _is_divided(node: Any) -> bool:
    return isinstance(node, InertObject) and PickledName(DISTRIBUTED_TENSOR) in node.arguments[:1]


def _attributes(node: InertObject) -> dict[str, Any]:
    """Return the attributes of an object. Some classes store a pair of dicts, the second one for __slots__."""
    state = node.state[0] if isinstance(node.state, tuple) and node.state else node.state
    return state if isinstance(state, dict) else {}


def _is_module(node: InertObject) -> bool:
    attributes = _attributes(node)
    return isinstance(attributes.get("_modules"), dict) and isinstance(attributes.get("_parameters"), dict)


def _flatten_module(module: InertObject) -> dict[str, Any]:
    """Return the tensors of a module and its submodules under the names in its state_dict(); none if they are far too many."""
    tensors: dict[str, Any] = {}
    waiting: list[tuple[KeyPath, InertObject]] = [((), module)]
    seen, left = set[int](), MAX_NAMES
    for path, node in waiting:
        if id(node) in seen:
            continue
        seen.add(id(node))
        attributes = _attributes(node)
        groups = [attributes.get(name) for name in ("_parameters", "_buffers", "_modules")]
        left -= sum(_names_length(path, group) for group in groups if isinstance(group, dict))
        if left < 0:
            return {}
        *values, parts = groups
        for group in values:
            if isinstance(group, dict):
                tensors |= {_join((*path, name)): value for name, value in group.items() if isinstance(value, Tensor)}
        if isinstance(parts, dict) and len(path) < MAX_DEPTH:
            waiting += [((*path, name), part) for name, part in parts.items() if isinstance(part, InertObject)]
    return tensors


def _read_settings(content: Any, weights: FileContent) -> None:
    """Note the settings beside the weights, in the forms of nanoGPT and its forks, transformers and chapter 5."""
    counts, seen = set[int](), set[int]()
    problems = dict.fromkeys(weights.problems)  # A dict, since a stranger's file may have very many problems.
    tensors = {name: value for name, value in weights.tensors.items() if isinstance(name, str) and isinstance(value, Tensor)}
    sizes = stored_sizes({name: tuple(value.shape) for name, value in tensors.items()})
    for _, node in _nodes(content, inside_modules=True):
        values = _attributes(node) if isinstance(node, InertObject) else node
        if not isinstance(values, dict) or id(values) in seen:  # Any number of objects may share their attributes.
            continue
        seen.add(id(values))
        if len(counts) < 2:  # Two are enough to know that they differ. Many large numbers could have the same hash.
            counts |= {count for name in HEAD_COUNTS if type(count := as_count(values.get(name))) is int}
        declared: dict[str, Any] = {}
        if not ("n_positions" in values or "n_ctx" in values):
            problems |= dict.fromkeys(other_settings(values, context_length=sizes.get("context_length")))
        if all(isinstance(as_count(values.get(name)), int) for name in ("n_embd", "n_layer")):
            if "block_size" in values:
                names = {*NANOGPT_FIELDS, "bias"} & values.keys()
                declared = from_nanogpt_args({name: values[name] for name in names})
            elif "n_positions" in values or "n_ctx" in values:
                declared, found = from_hf_config({"model_type": "gpt2"} | values)
                problems |= dict.fromkeys(found)
        if (gelu := stated_gelu(values)) is not None:
            declared["gelu_approximate"] = gelu
        for name in TOLD:
            if declared.get(name) is not None:
                weights.told.setdefault(name, declared[name])
    weights.problems = list(problems)
    weights.likely_heads = counts.pop() if len(counts) == 1 else None


def _read_module(module: InertObject, weights: FileContent) -> None:
    """Note the activation function of a whole module, and the problems with parts that differ from GPTModel's."""
    forms, known, problems = set[str](), set[str](), dict.fromkeys(weights.problems)
    for _, node in _nodes(module, inside_modules=True):
        if not isinstance(node, InertObject):
            continue
        name, attributes = node.name.rpartition(".")[2][:MAX_NAME], _attributes(node)
        if node.name == TORCH_GELU:
            approximate = attributes.get("approximate", "none")
            forms.add(approximate if isinstance(approximate, str) else short_repr(approximate))
        elif name in ACTIVATIONS:
            forms.add(ACTIVATIONS[name])
        elif name not in known and (OTHER_ACTIVATIONS.fullmatch(name) or "RMSNorm" in name):
            problems[f"its module has {name}, but GPT-2 has {'LayerNorm' if 'RMS' in name else 'GELU'}."] = None
        known.add(name)
        eps = attributes.get("eps")
        if "norm" in name.lower() and isinstance(eps, float) and eps != LAYER_NORM_EPS:
            problems[f"its {name} has eps={eps}, but this program's GPT-2 always has {LAYER_NORM_EPS}."] = None
    weights.problems = list(problems)
    if len(forms) > 1:
        weights.problems.append(
            f"its modules have GELU in several forms ({', '.join(sorted(forms))}), but this program's GPT-2 has one."
        )
    elif forms:
        weights.told["gelu_approximate"] = forms.pop()
