"""Find the file of weights in a folder that is neither a run nor a model of transformers, or explain what else it is."""

from __future__ import annotations

import itertools
import logging
import re
import zipfile
from contextlib import suppress
from pathlib import Path

from gpt_pretrain.checkpoints.formats.layouts import ANY_INDEX, CONFIG_FILE, PICKLE_INDEX, SHARD_INDEX, WEIGHTS_FILES
from gpt_pretrain.checkpoints.recognition.misfits import name_some
from gpt_pretrain.checkpoints.serialization.tensor_files import read_model_json
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import DamagedFileError, open_regular, read_bytes
from gpt_pretrain.system.recognition.conversion import quote_path
from gpt_pretrain.system.recognition.file_kinds import (
    ARCHIVES,
    BINARY,
    EMPTY_FILE,
    HTML,
    LFS_POINTER,
    NO_WEIGHTS,
    PICKLE,
    SUFFIXES,
    TOKENS,
    TORCH,
    FileKind,
)
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.texts.containers.archives import Members, read_tar, read_zip
from gpt_pretrain.texts.containers.blocks import read_stream
from gpt_pretrain.texts.containers.decompression import ContentLimit, DamagedArchiveError
from gpt_pretrain.texts.recognition import recognize_file

# The name of one of several files of a model, perhaps of a variant such as fp16.
PART = re.compile(
    r"(?:(?:pytorch_)?model\.(?P<variant>[\w-]+?)|.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<ending>safetensors|bin)"
)
WEIGHTS_NAME = re.compile(r".+\.(pth|pt|ckpt|safetensors)|(pytorch_)?model.*\.bin")
# Names of files that look like weights, but in which training programs store something else.
NO_MODELS = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|random_states|training_args|adapter|pytorch_lora|token_bytes|optim_\d+_rank).*",
    re.IGNORECASE,
)
MAX_COMMIT = 200  # bytes of a file that names a version
ADAPTER_CONFIG = "adapter_config.json"
DISTRIBUTED_PIECE = ".distcp"
# Weights for other libraries, by the name of their file: the library, and where to find weights for PyTorch.
CONVERT = "Convert them with a version of transformers before 5: GPT2LMHeadModel.from_pretrained(FOLDER, {option}=True)"
OTHER_FORMATS = {
    r"(.*ckpt.*|.*-\d+|variables)\.(index|meta)|.*\.data-\d+-of-\d+|saved_model\.pb|.*\.tflite": (
        "TensorFlow",
        "OpenAI's GPT-2 is named gpt2, gpt2-medium, gpt2-large or gpt2-xl.",
    ),
    r".*\.(h5|hdf5|keras)": ("TensorFlow or Keras", CONVERT.format(option="from_tf")),
    r".*\.msgpack": ("Flax", CONVERT.format(option="from_flax")),
    r".*\.onnx(_data|\.data)?": ("ONNX", "Name the model that they were made from."),
    r".*\.gguf|ggml-.*\.bin|.*\.ggml": ("llama.cpp", "Name the model that they were made from."),
    r".*\.(engine|plan)": ("TensorRT", "Name the model that they were made from."),
    r"openvino_\w*model\.(xml|bin)": ("OpenVINO", "Name the model that they were made from."),
    r".*\.pte": ("ExecuTorch", "Name the model that they were made from."),
    r".*\.ot": ("Rust", "Name the model that they were made from."),
    r".*\.(mlmodel|mlpackage)": ("Core ML", "Name the model that they were made from."),
}
# The first bytes of compressed files, with the program that decompresses them.
DECOMPRESSORS = {b"\x1f\x8b": "gzip -d", b"BZh": "bzip2 -d", b"\xfd7zXZ": "xz -d", b"\x28\xb5\x2f\xfd": "zstd -d"}
# Archives of whole programs, by a name in the list at their end: what they are, and how to get the weights.
PROGRAMS = {
    b"/code/__torch__": ("a TorchScript program", "torch.jit.load(FILE).state_dict()"),
    b"/models/model.json": ("a program of torch.export", "torch.export.load(FILE).state_dict"),
}
DIRECTORY = 1 << 16  # bytes at the end of an archive that are searched for these names
OLD_TORCH_PARTS = {"sys_info", "pickle", "storages", "tensors"}  # files in the tar archives of PyTorch before 0.2
MAX_BLOCKS = 1000  # megabytes of a tar archive that are searched for names

log = logging.getLogger(__name__)


def only_weights_file(folder: Path) -> Path:
    """Return the one file of weights in a folder.

    Raises:
        UserError: If there is none, or there are several.
    """
    names = sorted(path.name for path in folder.iterdir())
    if ADAPTER_CONFIG in names:
        base = read_model_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        changed = "a model that is stored elsewhere" if base is None else f"the model {short_repr(base)}"
        raise UserError(
            f"{folder} holds adapters (LoRA) that change {changed}, not a model. Merge them with PEFT's "
            "merge_and_unload(), and save the result with save_pretrained()."
        )
    if (pieces := _distributed_refusal(folder, names)) is not None:
        raise UserError(pieces)
    indexes = sorted((name for name in names if ANY_INDEX.fullmatch(name)), key=lambda name: (len(name), name))
    if indexes and (len(indexes) == 1 or indexes[0] in WEIGHTS_FILES):
        return folder / indexes[0]
    found = [name for name in names if WEIGHTS_NAME.fullmatch(name) and not NO_MODELS.fullmatch(name)]
    found = [name for name in found if (folder / name).is_file()]
    if len(found) == 1:
        return folder / found[0]
    if found and not indexes and (part := PART.fullmatch(found[0])) is not None:
        raise UserError(
            f"{folder} holds {len(found)} of {int(part['count'])} files of a model, but not {_index_name(part)}, which lists "
            "their tensors. Copy it into the folder."
        )
    found = indexes or found
    if found:
        raise UserError(f"{folder} holds several files of weights: {name_some(found)}. Name one of them.")
    raise UserError(_refusal(folder, names))


def cached_snapshot(folder: Path) -> Path | None:
    """Return the folder with a model's files if a folder is a model in the hub's cache. Return None otherwise.

    If the cache has several versions, return the main branch as of the last download.
    """
    found = {path.parent.name: path.parent for path in (folder / "snapshots").glob(f"*/{CONFIG_FILE}")}
    with suppress(OSError, DamagedFileError):
        newest = read_bytes(folder / "refs" / "main", max_bytes=MAX_COMMIT).decode(errors="replace").strip()
        if len(found) > 1 and newest in found:
            log.info("%s: there are %d versions; %s is read, which refs/main names", folder, len(found), newest)
            return found[newest]
    if len(found) > 1:
        listed = name_some([str(path) for path in found.values()])
        raise UserError(f"{folder} holds several versions of a model: {listed}. Name one of them.")
    return next(iter(found.values()), None)


def index_of_part(path: Path) -> Path | None:
    """Return the index beside a file that is one of several files of a model. Return None for any other file.

    Raises:
        UserError: If the index is missing.
    """
    part = PART.fullmatch(path.name)
    if part is None or part["count"] == "00001":
        return None
    index = path.parent / _index_name(part)
    if not index.is_file():
        raise UserError(
            f"{path} is part {int(part['number'])} of a model in {int(part['count'])} files. All of them are needed, with "
            f"{index.name} in the same folder."
        )
    return index


def _index_name(part: re.Match[str]) -> str:
    """Return the name of a model's index.

    Args:
        part: A match of PART.
    """
    index = SHARD_INDEX if part["ending"] == "safetensors" else PICKLE_INDEX
    return index if part["variant"] is None else f"{index.removesuffix('.json')}.{part['variant']}.json"


def check_is_no_other_file(path: Path) -> None:
    """Check that a file is not of a kind that cannot contain weights, such as a text or token ids.

    Raises:
        UserError: If it is of such a kind. The message names the kind.
    """
    try:
        kind = recognize_file(str(path))
        with open_regular(path) as stream:
            head = stream.read(8)
            stream.seek(max(path.stat().st_size - DIRECTORY, 0))
            directory = stream.read(DIRECTORY) if head.startswith(b"PK") else b""
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if path.suffix == DISTRIBUTED_PIECE:
        raise UserError(f"{path} is a piece of a checkpoint of torch.distributed. {_one_file(path.parent)}")
    if (format_problem := _other_format(path.name)) is not None and kind not in (TORCH, EMPTY_FILE, LFS_POINTER):
        raise UserError(f"{path} holds weights {format_problem}")
    command = next((command for magic, command in DECOMPRESSORS.items() if head.startswith(magic)), None)
    if kind.content == "tar" and command is not None:
        raise UserError(f"{path} is a compressed archive. Unpack it first: tar -xf {quote_path(str(path))}")
    if command is not None:
        raise UserError(f"{path} is compressed. Decompress it first: {command} {quote_path(str(path))}")
    for mark, (program, weights) in PROGRAMS.items():
        if mark in directory:
            raise UserError(f"{path} is {program}, not only weights. Save these alone: torch.save({weights}, 'model.pt')")
    if kind is EMPTY_FILE:
        raise UserError(f"{path} is empty. Download or save it again.")
    if kind is SUFFIXES[".safetensors"]:
        raise UserError(f"{path} is damaged: it does not begin as a safetensors file does. Download or copy it again.")
    if kind.form in ARCHIVES:
        _check_archive(path)
    elif kind not in (TORCH, PICKLE, BINARY, TOKENS):
        contrast = "" if "weights" in kind.name else ", not weights"
        raise UserError(f"{path} is {kind.described()}{contrast}. {_advice(path, kind)}")


def _advice(path: Path, kind: FileKind) -> str:
    """Return advice about a file that does not contain weights."""
    if kind is LFS_POINTER:
        return kind.advice
    give = "Give a checkpoint, a model's folder or its name on the hub."
    if kind.advice == NO_WEIGHTS:
        return kind.advice
    if kind.name == HTML.name:
        return f"A page may have been downloaded instead of the file: the hub's files are at /resolve/, not at /blob/. {give}"
    if kind.is_read:
        return f"{give} To train on it: data=text data.path={quote_path(str(path))}"
    return f"{give} {kind.advice}" if kind.advice and re.search("weights|token ids", kind.name) else give


def _check_archive(path: Path) -> None:
    """Check that an archive is one that `torch.save` wrote.

    Raises:
        UserError: If it is not.
    """
    remedy = "Unpack it, and give the file or folder of weights in it."
    with open_regular(path) as stream:
        if zipfile.is_zipfile(stream):
            size = path.stat().st_size
            names = _names(read_zip(stream, size=size, limit=ContentLimit(size)))
            if names and not any(name.endswith("data.pkl") for name in names):
                raise UserError(f"{path} is a zip archive ({name_some(names)}), not weights. {remedy}")
            return
        names = _names(read_tar(itertools.islice(read_stream(stream), MAX_BLOCKS)), count=10)
    if set(names) >= OLD_TORCH_PARTS:
        remedy = "It was saved by PyTorch before 0.2: load it there, and save it with torch.save in a later version."
    raise UserError(f"{path} is a tar archive ({name_some(names)}), not weights. {remedy}")


def _names(members: Members, count: int | None = None) -> list[str]:
    """Return the names of the first files in an archive. Stop where it is damaged."""
    names = list[str]()
    with suppress(DamagedArchiveError):
        for name, _ in itertools.islice(members, count):
            names.append(name)
    return names


def _other_format(name: str) -> str | None:
    """Return the end of the message about weights for another library, or None. The name of the file decides."""
    for pattern, (library, remedy) in OTHER_FORMATS.items():
        if re.fullmatch(pattern, name):
            return f"for {library}. Only those for PyTorch can be read: {', '.join(WEIGHTS_FILES)}. {remedy}"
    return None


def _distributed_refusal(folder: Path, names: list[str]) -> str | None:
    """Return the message about a folder with the pieces of a distributed checkpoint, or None for any other folder."""
    if ".metadata" in names and any(name.endswith(DISTRIBUTED_PIECE) for name in names):
        return f"{folder} is a checkpoint of torch.distributed, whose tensors are in pieces. {_one_file(folder)}"
    if "zero_to_fp32.py" in names:
        return f"{folder} is a checkpoint of DeepSpeed, whose tensors are in pieces. Convert it with the zero_to_fp32.py in it."
    return None


def _one_file(folder: Path) -> str:
    """Return how to convert a checkpoint of torch.distributed."""
    command = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {quote_path(str(folder))} model.pt"
    return f"Convert it to one file: {command}"


def _refusal(folder: Path, names: list[str]) -> str:
    """Return the message about a folder without a file of weights."""
    expected = ", ".join(WEIGHTS_FILES)
    cached = [name for name in names if name.startswith("models--")]
    if cached:
        return f"{folder} is the hub's cache, with these models: {name_some(cached)}. Name one of them."
    inner = [name for name in names if any((folder / name / file).is_file() for file in (CONFIG_FILE, ".metadata"))]
    if inner:
        return f"{folder} holds folders of models: {name_some(inner)}. Name one of them."
    for name in names:
        if (problem := _other_format(name)) is not None:
            return f"{folder}: {name} holds weights {problem}"
    if missing := next((file for file in WEIGHTS_FILES if (folder / file).is_symlink()), None):
        return (
            f"{folder / missing} is a link to a file that does not exist. Copy the folder again, with the files behind its links."
        )
    if CONFIG_FILE in names:
        return f"{folder} has a {CONFIG_FILE}, but none of these files of weights: {expected}."
    return (
        f"{folder} holds no model: neither a {CONFIG_FILE} of transformers, nor a file of weights, nor the checkpoints of a run."
    )
