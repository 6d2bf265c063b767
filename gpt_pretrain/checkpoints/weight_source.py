"""Find and recognize the weights that a user names: by content, not by file name."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt_pretrain.checkpoints.checkpoint_file import newest_readable
from gpt_pretrain.checkpoints.formats.layouts import (
    ANY_INDEX,
    CONFIG_FILE,
    OWN_KEY,
    PICKLE_FILE,
    PICKLE_INDEX,
    SAFETENSORS_FILE,
    SHARD_INDEX,
    WEIGHTS_FILES,
    from_hf_config,
    from_nanogpt_args,
)
from gpt_pretrain.checkpoints.formats.llmc_model import is_llmc_file, read_llmc_model
from gpt_pretrain.checkpoints.formats.nanochat_checkpoint import read_nanochat_checkpoint
from gpt_pretrain.checkpoints.formats.nanochat_layout import NANOCHAT, from_nanochat_config, from_nanochat_tensors
from gpt_pretrain.checkpoints.recognition.file_content import is_own_checkpoint, read_weights
from gpt_pretrain.checkpoints.recognition.folder_contents import (
    ADAPTER_CONFIG,
    cached_snapshot,
    check_is_no_other_file,
    index_of_part,
    only_weights_file,
)
from gpt_pretrain.checkpoints.recognition.indexed_files import index_files, read_indexed, read_tensors
from gpt_pretrain.checkpoints.recognition.misfits import name_some
from gpt_pretrain.checkpoints.recognition.tensor_groups import stored_sizes
from gpt_pretrain.checkpoints.serialization.tensor_files import (
    StoredTensor,
    is_safetensors,
    loaded_tensor,
    read_model_json,
    read_safetensors,
    state_dict_tensors,
)
from gpt_pretrain.checkpoints.sharded import assemble_shards
from gpt_pretrain.checkpoints.weight_tokenizers import (
    FindTokenizer,
    checkpoint_tokenizer,
    folder_finder,
    hub_finder,
    nanochat_finder,
    nanogpt_finder,
    neighbor_finder,
    no_tokenizer,
)
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.runs.folder import checkpoint_dir
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.reading_cost import explained_by_own_size, explained_by_size
from gpt_pretrain.system.shell import quote_word
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.system.typed_paths import nearest_path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<model>[\w.-]+(?:/(?!(?:tree|blob|resolve)/)[\w.-]+)?)"
)
FILE_ENDINGS = (".ckpt", ".pth", ".pt", ".bin", ".safetensors", ".json")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightSource:
    """Tensors as they are stored, with the facts that are stored beside them.

    Args:
        name: The path or hub id, for messages.
        tensors: The tensors by their stored names.
        declared: The fields of `GPTConfig` that a stored config states.
        likely_heads: A number of attention heads that the file mentions, perhaps for another model.
        find_tokenizer: Returns the tokenizer that belongs to the weights, or None if there is none.
        has_tokenizer_files: Whether models in this format come with the files of their tokenizer.
        is_safetensors: Whether the file is in the safetensors format.
        content: The rest of the checkpoint, if this program wrote it.
        average: The moving average of the weights, if this program's checkpoint has one.
    """

    name: str
    tensors: Mapping[str, StoredTensor]
    declared: Mapping[str, Any] = field(default_factory=dict)
    find_tokenizer: FindTokenizer = no_tokenizer
    has_tokenizer_files: bool = False
    is_safetensors: bool = False
    content: Mapping[str, Any] = field(default_factory=dict)
    average: Mapping[str, StoredTensor] | None = None
    likely_heads: int | None = None


def find_source(source: str | Path) -> WeightSource:
    """Open the weights behind a path, a hub id or "latest".

    Raises:
        UserError: If there are none, or they are in no known format.
    """
    name = str(source)
    path = user_path(name)
    if name == "latest":
        return newest_readable(name, _from_file)
    try:
        if path.name in (CONFIG_FILE, SHARD_INDEX, PICKLE_INDEX) and path.is_file():
            path = path.parent
        exists, is_folder = path.exists(), path.is_dir()
    except OSError as error:
        raise UserError(f"{name[:100]}: this path cannot be read ({error.strerror}).") from error
    if exists:
        return _from_folder(path) if is_folder else _from_file(path)
    check_weights_exist(name)
    return _from_hub(name)


def check_weights_exist(name: str) -> None:
    """Check that weights are named by a path that exists, a possible hub id or "latest". Nothing is opened.

    Raises:
        UserError: If they are not.
    """
    if name == "latest" or user_path(name).exists() or (HUB_ID.fullmatch(name) and not name.endswith(FILE_ENDINGS)):
        return
    if (address := HUB_ADDRESS.match(name)) is not None:
        raise UserError(f"{name}: models on the hub are given by name, not by address. Type {address['model']}")
    if os.path.exists(index := f"{user_path(name)}.index"):  # TensorFlow names a checkpoint without its suffixes.
        check_is_no_other_file(Path(index))
    if user_path(name).is_symlink():
        raise UserError(f"{name} is a link to a file that does not exist. Restore the file, or give another path.")
    nearest = nearest_path(user_path(name))
    other = f"Did you mean {quote_word(nearest)}?" if nearest else "Check the path, or give a model on the hub as owner/name."
    raise UserError(f"{name}: there is no such file or folder. {other}")


def _from_hub(repo_id: str) -> WeightSource:
    from gpt_pretrain.system.hub import fetch, fetch_first

    config = fetch(repo_id, CONFIG_FILE)
    # This rejects any other kind of model before its weights are downloaded, which may be many gigabytes.
    _read_config(config)
    weights = fetch_first(repo_id, WEIGHTS_FILES)
    if weights.name in (SHARD_INDEX, PICKLE_INDEX):
        for file in sorted(set(index_files(weights).values())):
            fetch(repo_id, file)
    with explained_by_size(repo_id):
        return replace(_from_hf_files(config, weights, name=repo_id), find_tokenizer=hub_finder(repo_id))


@explained_by_own_size
def _from_folder(folder: Path) -> WeightSource:
    if any(checkpoint_dir(folder).glob("*.ckpt")):
        return newest_readable(str(folder), _from_file)
    for name in WEIGHTS_FILES if (folder / CONFIG_FILE).is_file() else ():
        if (folder / name).is_file():
            return _from_hf_files(folder / CONFIG_FILE, folder / name, name=str(folder))
    if (snapshot := cached_snapshot(folder)) is not None:
        return _from_folder(snapshot)
    weights = only_weights_file(folder)
    # A training program may have written a config.json of its own.
    if (folder / CONFIG_FILE).is_file() and "model_type" in read_model_json(folder / CONFIG_FILE):
        return _from_hf_files(folder / CONFIG_FILE, weights, name=str(weights))
    return _from_file(weights)


def _from_hf_files(config: Path, weights: Path, *, name: str) -> WeightSource:
    """Open a config.json and the weights that belong to it."""
    declared, fields = _read_config(config)
    if (config.parent / ADAPTER_CONFIG).is_file():
        log.warning(
            "%s has adapters (LoRA) beside %s, which are not applied. If they are not merged into it yet, do so with PEFT's "
            "merge_and_unload(), and save the result with save_pretrained().",
            config.parent,
            weights.name,
        )
    if "auto_map" in fields:
        log.warning("%s asks for model code of its own, which is not run. The model may compute different results here.", config)
    tensors = read_indexed(weights) if (index := ANY_INDEX.fullmatch(weights.name)) else read_tensors(weights)
    if fields.get("model_type") == NANOCHAT:
        tensors = from_nanochat_tensors(tensors)
    find = folder_finder(config.parent, fields.get(OWN_KEY))
    is_safe = index["kind"] == SAFETENSORS_FILE if index else is_safetensors(weights)
    return WeightSource(name, tensors, declared, find, True, is_safetensors=is_safe)


def _read_config(config: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of `GPTConfig` that a config.json declares, and all its fields."""
    fields = read_model_json(config)
    translate = from_nanochat_config if fields.get("model_type") == NANOCHAT else from_hf_config
    declared, problems = translate(fields)
    if problems:
        raise UserError(f"{config}: {' Also, '.join(problems)}")
    return declared, fields


@explained_by_own_size
def _from_file(path: Path) -> WeightSource:
    """Open a single file, whose format is recognized by its content."""
    try:
        safetensors, llmc = is_safetensors(path), is_llmc_file(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if (index := path if ANY_INDEX.fullmatch(path.name) else index_of_part(path)) is not None:
        config, name = index.parent / CONFIG_FILE, str(index.parent)
        if config.is_file():
            return _from_hf_files(config, index, name=name)
        return WeightSource(name, read_indexed(index), is_safetensors=index.name.startswith(SAFETENSORS_FILE))
    if not safetensors and not llmc:
        check_is_no_other_file(path)
    if safetensors or path.suffix == ".safetensors":
        stored = read_safetensors(path)
        if _has_config(path, stored, named=SAFETENSORS_FILE):
            return _from_hf_files(path.parent / CONFIG_FILE, path, name=str(path))
        return WeightSource(str(path), stored, find_tokenizer=_neighbor(path, stored), is_safetensors=True)
    if llmc:
        tensors, declared = read_llmc_model(path)
        return WeightSource(str(path), tensors, declared)
    if (path.parent / CONFIG_FILE).is_file() and path.name == PICKLE_FILE:
        return _from_hf_files(path.parent / CONFIG_FILE, path, name=str(path))
    weights = read_weights(path)
    if is_own_checkpoint(weights.whole):
        return _from_own_checkpoint(path, weights.whole)
    if weights.problems:
        raise UserError(f"{path}: {' Also, '.join(weights.problems)}")
    if weights.others:
        log.warning("%s also contains other weights, which are not used: %s", path, name_some(weights.others))
    tensors = state_dict_tensors(weights.tensors, path)
    if "model_args" not in weights.whole and _has_config(path, tensors, named=PICKLE_FILE):
        return _from_hf_files(path.parent / CONFIG_FILE, path, name=str(path))
    if (nanochat := read_nanochat_checkpoint(path, tensors)) is not None:
        return WeightSource(str(path), *nanochat, nanochat_finder(path, nanochat[1]["vocab_size"]))
    declared, find = weights.told, _neighbor(path, tensors)
    if isinstance(arguments := weights.whole.get("model_args"), dict):
        declared, find = from_nanogpt_args(arguments) | declared, nanogpt_finder(path, weights.whole)
    return WeightSource(str(path), tensors, declared, find, likely_heads=weights.likely_heads)


def _neighbor(path: Path, tensors: Mapping[str, StoredTensor]) -> FindTokenizer:
    sizes = stored_sizes({name: stored.shape for name, stored in tensors.items()})
    return neighbor_finder(path, sizes.get("vocab_size"))


def _has_config(path: Path, tensors: Mapping[str, StoredTensor], *, named: str) -> bool:
    """Return whether a config.json belongs to a file of weights in its folder.

    It may also be of a training program, or of another model in the same folder.

    Args:
        named: The name of the file to which a config.json always belongs.
    """
    config = path.parent / CONFIG_FILE
    if not config.is_file() or path.name == named:
        return config.is_file()
    try:
        fields = read_model_json(config)
    except UserError:
        return False
    if "model_type" not in fields:
        return False
    declared = (from_nanochat_config if fields["model_type"] == NANOCHAT else from_hf_config)(fields)[0]
    sizes = stored_sizes({name: stored.shape for name, stored in tensors.items()})
    seen = {name: sizes[name] for name in ("emb_dim", "n_layers") if name in sizes}
    if all(declared[name] == size for name, size in seen.items()):
        return True
    says = ", ".join(f"{name}={short_repr(declared[name])}" for name in seen)
    has = ", ".join(f"{name}={size}" for name, size in seen.items())
    log.warning("%s describes another model (%s) than %s (%s) and is ignored.", config, says, path.name, has)
    return False


def _own_tensors(content: Mapping[str, Any], key: str, path: Path, *, sharded: bool) -> dict[str, StoredTensor]:
    """Describe the weights in a field of one of this program's checkpoints.

    Raises:
        UserError: If the field holds something else.
    """
    if not sharded:
        return state_dict_tensors(content[key], path)
    whole = content[key].items()
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in whole):
        raise UserError(f"{path} is damaged: its {key} holds more than tensors.")
    return {name.removeprefix("model."): loaded_tensor(name, value) for name, value in whole}


def _from_own_checkpoint(path: Path, content: dict[str, Any]) -> WeightSource:
    if not isinstance(content["state_dict"], dict) or not isinstance(content.get("tokenizer"), str):
        raise UserError(
            f"{path} is not a complete checkpoint of this program: it lacks its tensors or the tokenizer's name. If a Trainer of "
            "your own has saved it, save the weights with torch.save(module.model.state_dict(), 'model.pth')."
        )
    try:
        declared = GPTConfig.from_dict(content["architecture"]).to_dict()
    except UserError as error:
        raise UserError(f"{path}: {problem}" for problem in error.problems) from error
    sharded = "shards" in content
    content = assemble_shards(content, path) if sharded else content
    tensors = _own_tensors(content, "state_dict", path, sharded=sharded)
    average = _own_tensors(content, "ema", path, sharded=sharded) if isinstance(content.get("ema"), dict) else None
    find = partial(checkpoint_tokenizer, content, origin=str(path))
    return WeightSource(str(path), tensors, declared, find, content=content, average=average)
