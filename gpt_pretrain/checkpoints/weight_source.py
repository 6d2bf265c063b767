"""What a user may name as weights, found and recognised: by looking at it, whatever its name is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt_pretrain.checkpoints.checkpoint_file import first_whole
from gpt_pretrain.checkpoints.layouts import OWN_KEY, from_hf_config, from_nanogpt_args
from gpt_pretrain.checkpoints.sharded import assembled
from gpt_pretrain.checkpoints.tensor_files import (
    INDEX,
    StoredTensor,
    in_memory,
    is_safetensors,
    read_json,
    read_safetensors,
    read_shards,
    read_torch_file,
    stored_tensors,
)
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.runs.folder import checkpoint_dir, find_checkpoints
from gpt_pretrain.tokenizers.tiktoken_bpe import gpt2_vocabulary

CONFIG, SAFETENSORS, PICKLE = "config.json", "model.safetensors", "pytorch_model.bin"
EXPORTED_FILES = {CONFIG, SAFETENSORS, "README.md", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
FILE_ENDINGS = (".ckpt", ".pth", ".pt", ".bin", ".safetensors", ".json")
BY_SIZE = "by the size of the vocabulary"


@dataclass(frozen=True)
class WeightSource:
    """Tensors as somebody stored them, and what stands beside them.

    Args:
        name: for messages: the path or the hub id.
        tensors: under the names that they have there.
        declared: fields of `GPTConfig` that a config beside them tells.
        tokenizer: its name; BY_SIZE where only the vocabulary's size can tell, None where it is one that is not known here.
        bias_free: whether biases are left out because they are zero.
        is_safetensors: whether that is the file's format.
        content: the rest of one of this program's checkpoints.
    """

    name: str
    tensors: Mapping[str, StoredTensor]
    declared: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = BY_SIZE
    bias_free: bool = False
    is_safetensors: bool = False
    content: Mapping[str, Any] = field(default_factory=dict)


def find_source(source: str | Path) -> WeightSource:
    """What a user means by a path, a hub id or "latest".

    Raises:
        UserError: when there is no such thing, or it is none of the known formats.
    """
    name = str(source)
    path = Path(name).expanduser()
    if name == "latest":
        return first_whole(find_checkpoints(name), _from_file)
    try:
        if path.name in (CONFIG, INDEX) and path.is_file():
            path = path.parent
        there, folder = path.exists(), path.is_dir()
    except OSError as error:
        raise UserError(f"{name[:100]}: this cannot be looked at ({error.strerror}).") from error
    if there:
        return _from_folder(path) if folder else _from_file(path)
    if HUB_ID.fullmatch(name) and not name.endswith(FILE_ENDINGS):
        from gpt_pretrain.checkpoints.hub import fetch

        config = fetch(name, CONFIG)
        _declared(config)  # it may be another kind of model, of many gigabytes
        return _from_hf_files(config, fetch(name, SAFETENSORS), name=name)
    raise UserError(f"{name}: there is no such file or folder.")


def _from_folder(folder: Path) -> WeightSource:
    if any(checkpoint_dir(folder).glob("*.ckpt")):
        return first_whole(find_checkpoints(str(folder)), _from_file)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no model: it has neither {CONFIG}, as transformers writes it, nor checkpoints of a run.")
    for name in (SAFETENSORS, INDEX, PICKLE):
        if (folder / name).is_file():
            return _from_hf_files(folder / CONFIG, folder / name, name=str(folder))
    raise UserError(f"{folder} has a {CONFIG}, but no weights: {SAFETENSORS}, {INDEX} or {PICKLE}.")


def _from_hf_files(config: Path, weights: Path, *, name: str) -> WeightSource:
    """A config.json and the weights that belong to it."""
    declared, fields = _declared(config)
    if weights.name == INDEX:
        tensors = read_shards(weights)
    elif is_safetensors(weights):
        tensors = read_safetensors(weights)
    else:
        content = read_torch_file(weights)
        if not isinstance(content, dict):
            raise UserError(f"{weights} holds a {type(content).__name__}, not a table of tensors.")
        tensors = stored_tensors(content, weights)
    own = fields.get(OWN_KEY)
    tokenizer = own.get("tokenizer") if isinstance(own, dict) else _folder_tokenizer(config.parent)
    if tokenizer is not None and not isinstance(tokenizer, str):
        raise UserError(f"{config}: {OWN_KEY}.tokenizer is {tokenizer!r}; it must be a tokenizer's name.")
    return WeightSource(name, tensors, declared, tokenizer, is_safetensors=weights.name != PICKLE)


def _declared(config: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a config.json tells of the architecture, and all its fields."""
    fields = read_json(config)
    declared, problems = from_hf_config(fields)
    if problems:
        raise UserError(f"{config}: {problem}" for problem in problems)
    return declared, fields


def _from_file(path: Path) -> WeightSource:
    """A single file, by what it begins with and holds."""
    try:
        safetensors = is_safetensors(path) or path.suffix == ".safetensors"
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if safetensors:
        if (path.parent / CONFIG).is_file() and path.name == SAFETENSORS:
            return _from_hf_files(path.parent / CONFIG, path, name=str(path))
        return WeightSource(str(path), read_safetensors(path), is_safetensors=True)
    content = read_torch_file(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a table of tensors.")
    if "architecture" in content and "state_dict" in content:
        return _from_own(path, content)
    if isinstance(content.get("model_args"), dict) and isinstance(content.get("model"), dict):
        declared = from_nanogpt_args(content["model_args"])
        tensors = stored_tensors(content["model"], path)
        return WeightSource(str(path), tensors, declared, bias_free=declared["qkv_bias"] is False)
    inner = [content[key] for key in ("model_state_dict", "state_dict", "model") if isinstance(content.get(key), dict)]
    return WeightSource(str(path), stored_tensors(inner[0] if inner else content, path))


def _from_own(path: Path, content: dict[str, Any]) -> WeightSource:
    """One of this program's checkpoints."""
    if not isinstance(content["state_dict"], dict) or not isinstance(content.get("tokenizer"), str):
        raise UserError(f"{path} is no whole checkpoint of this program: it lacks its tensors or its tokenizer's name.")
    try:
        declared = GPTConfig.from_dict(content["architecture"]).to_dict()
    except UserError as error:
        raise UserError(f"{path}: {problem}" for problem in error.problems) from error
    if "shards" not in content:
        tensors = stored_tensors(content["state_dict"], path)
    else:
        content = assembled(content, path)
        tensors = {name.removeprefix("model."): in_memory(name, value) for name, value in content["state_dict"].items()}
    return WeightSource(str(path), tensors, declared, content["tokenizer"], content=content)


def earlier_export(folder: Path) -> list[str]:
    """The files of a folder that an earlier export of this program wrote; none where there is no folder.

    Raises:
        UserError: when there is anything else.
    """
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; an export needs a folder of its own.")
    names = sorted(path.name for path in folder.iterdir())
    own = not names or ((folder / CONFIG).is_file() and OWN_KEY in read_json(folder / CONFIG))
    others = sorted(set(names) - EXPORTED_FILES) if own else names
    if others:
        raise UserError(
            f"{folder} holds what no earlier export wrote ({', '.join(others[:3])}{' ...' if len(others) > 3 else ''}); "
            "an export needs a folder of its own."
        )
    return names


def _folder_tokenizer(folder: Path) -> str | None:
    """None when a folder has a vocabulary of its own that is not GPT-2's."""
    for name in ("vocab.json", "tokenizer.json"):
        if (folder / name).is_file():
            content = read_json(folder / name)
            model = content.get("model")
            vocabulary = content if name == "vocab.json" else model.get("vocab") if isinstance(model, dict) else None
            return BY_SIZE if isinstance(vocabulary, dict) and gpt2_vocabulary().items() <= vocabulary.items() else None
    return BY_SIZE
