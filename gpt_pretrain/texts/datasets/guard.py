"""Keep the package datasets to the files of the dataset that it reads, and limit what they expand to.

datasets 5.2 and fsspec open whatever a name says. Such a name may come from the README.md of a dataset, from a list of its files,
or from the table of contents of an archive in it. It may be a path or a URL. With `::` it is a chain of file systems, and one of
them (`reference:`) reads templates that can see environment variables.

So while a dataset is read, each name is checked before it is opened, and file systems that no dataset needs are turned off.
"""

from __future__ import annotations

import codecs
import dataclasses
import importlib
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.hub_telemetry import disable_telemetry
from gpt_pretrain.system.reading import MAX_NAMES, DamagedFileError
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.system.yaml_files import parse_yaml_value
from gpt_pretrain.texts.containers.decompression import max_content
from gpt_pretrain.texts.containers.zip_members import check_no_overlap
from gpt_pretrain.texts.datasets.arrow_tables import ArrowLimit, refuse_listed
from gpt_pretrain.texts.datasets.field_limits import limit_fields, limit_fields_of_examples
from gpt_pretrain.texts.datasets.limited_stream import LimitedStream
from gpt_pretrain.texts.datasets.rows import read_text_column

HUB = "hf://datasets/"
MAX_OPEN = 32  # zip archives that stay open for further members
ARCHIVES = ("zip", "gzip", "bz2", "xz", "zstd", "lz4")
PROTOCOLS = frozenset(("file", "local", "hf", *ARCHIVES))
# The readers of datasets that open files only as streams, where names and sizes are checked. Others are refused. For example, the
# reader of HDF5 opens paths by itself, and such a file may name further ones; the reader of tar files decompresses their members.
READERS = ("arrow", "cache", "conll", "csv", "json", "parquet", "text", "xml")

SHOWN = frozenset(("arrow", "csv", "json", "parquet", "text"))  # in messages
SLOW_ENCODINGS = ("punycode", "idna")  # They take quadratic time.
# The options of a reader that a description may set to any value. Others choose how much is read at a time, or by which program.
HARMLESS = frozenset(
    [
        *("name", "version", "data_dir", "data_files", "description", "features", "encoding", "encoding_errors", "field"),
        *("header", "names", "column_names", "index_col", "usecols", "columns", "skiprows", "nrows", "skip_blank_lines"),
        *("true_values", "false_values", "na_values", "keep_default_na", "na_filter", "skipinitialspace", "thousands", "decimal"),
        *("lineterminator", "quotechar", "quoting", "escapechar", "doublequote", "comment", "on_bad_lines", "date_format"),
        *("sample_by", "keep_linebreaks", "on_mixed_types", "parse_agent_traces", "batch_size", "on_bad_files", "skip_docstart"),
        "comment_prefix",
    ]
)
SEPARATORS = ("sep", "delimiter")  # pandas takes a separator of several characters for a regular expression
# Searches for the files of a pattern (datasets 5.2 makes two for each that a description lists), and characters of a description,
# which datasets parses in pure Python.
MAX_PATTERNS, MAX_DESCRIPTION = 10_000, 2_000_000
LONGEST_PAUSE = 60.0  # seconds before a request to the hub is repeated; the hub may state a century
OPENERS = ("data_files", "download.streaming_download_manager", "utils.file_utils")  # modules of datasets that open files

Function = Callable[..., Any]


@contextmanager
def own_files_only(
    name: str, *, read_tables: Function = read_text_column, arrow_limit: ArrowLimit | None = None
) -> Iterator[None]:
    """Make the package datasets refuse, during the block, to list or open anything but the dataset's own files.

    Functions of datasets and fsspec are replaced meanwhile, so only one such block can be active at a time.

    Args:
        name: The dataset's name on the hub, or its folder or file on this machine.
        read_tables: Replaces the method of datasets that reads Parquet files.
        arrow_limit: Counts the texts of the Arrow files that are read; None for a limit of this block alone.
    """
    own, arrow_limit = _OwnFiles(name), arrow_limit or ArrowLimit()
    disable_telemetry()
    with ExitStack() as stack:
        for owner_name, function, wrap in (
            ("datasets.data_files", "resolve_pattern", own.check_pattern),
            *((f"datasets.{module}", "_prepare_path_and_storage_options", own.check_url) for module in OPENERS),
            ("fsspec.core", "get_filesystem_class", own.check_protocol),
            ("fsspec.registry", "get_filesystem_class", own.check_protocol),
            ("huggingface_hub.file_download", "get_hf_file_metadata", own.check_metadata),
            ("huggingface_hub.hf_api:HfApi", "dataset_info", own.check_info),
            ("huggingface_hub.utils._http", "time", _with_short_pauses),
            ("yaml", "load", own.check_description),
            # Otherwise, fsspec (2026.9) would read the list of an archive's members again for each member.
            ("fsspec.implementations.zip:ZipFileSystem", "cachable", lambda _: True),
            ("fsspec.implementations.zip:ZipFileSystem", "__init__", _check_archive),
            ("fsspec.implementations.zip:ZipFileSystem", "_open", _limit_member),
            ("datasets.filesystems.compression:BaseCompressedFileFileSystem", "_open", _limit_content),
            ("datasets.packaged_modules.parquet.parquet:Parquet", "_generate_tables", read_tables),
            ("datasets.packaged_modules.arrow.arrow:Arrow", "_generate_tables", arrow_limit.read_tables),
            ("datasets.table", "table_cast", arrow_limit.check_before_cast),
            ("datasets.packaged_modules.json.json", "find_mixed_struct_types_field_paths", limit_fields_of_examples),
            ("pyarrow.ipc", "open_stream", refuse_listed),
            ("pyarrow.json", "read_json", limit_fields),
            ("pandas", "read_json", limit_fields),
        ):
            stack.enter_context(_wrapped(owner_name, function, wrap))
        stack.callback(importlib.import_module("fsspec.implementations.zip").ZipFileSystem.clear_instance_cache)
        yield


def check_reader(builder: Any, name: str, *, readers: Collection[str] = READERS) -> None:
    """Check that the reader of a dataset opens files only as streams, with options that are safe.

    Args:
        builder: What `datasets.load_dataset_builder` returns.
        readers: The names of the readers that are accepted.

    Raises:
        UserError: If it does not.
    """
    reader = str(builder.__module__).rpartition(".")[2]
    if builder.__module__ != f"datasets.packaged_modules.{reader}.{reader}" or reader not in readers:
        shown = ", ".join(sorted(SHOWN.intersection(readers)))
        raise UserError(
            f"dataset={name}: its files are of the kind {reader}, whose reader may open other files as well. Nothing was read. "
            f"Download the files, and give those with text as inputs. Kinds that are read here: {shown}."
        )
    if getattr(builder.config, "filters", None):
        raise UserError(f"dataset={name}: its description filters the rows, which is not supported. Give its files as inputs.")
    encoding = getattr(builder.config, "encoding", None)
    if isinstance(encoding, str) and codecs.lookup(encoding).name in SLOW_ENCODINGS:  # it has many spellings
        raise UserError(f"dataset={name}: its description asks for the encoding {encoding}, which no text has. Nothing was read.")
    _check_repetitions(builder.config.data_files, name)
    usual = type(builder.config)()
    for setting in dataclasses.fields(builder.config):
        value = getattr(builder.config, setting.name)
        is_separator = setting.name in SEPARATORS and isinstance(value, str) and len(value) == 1
        if setting.name not in HARMLESS and not is_separator and value != getattr(usual, setting.name):
            raise UserError(
                f"dataset={name}: its description sets {setting.name}={short_repr(value)}, with which reading it could take "
                "unlimited time. Nothing was read. If you trust it, give its files as inputs."
            )


def _check_repetitions(data_files: Any, name: str) -> None:
    """Check that no file is listed many times, since datasets reads it each time.

    Raises:
        UserError: If one is.
    """
    listed = Counter(str(file) for files in data_files.values() for file in files) if isinstance(data_files, dict) else Counter()
    if listed and (most := listed.most_common(1)[0])[1] > MAX_NAMES:
        raise UserError(
            f"dataset={name}: its description lists {most[0]} {most[1]:,} times, and it would be read each time. Nothing was "
            "read. Give the files themselves as inputs."
        )


class _OwnFiles:
    """Knows which paths and URLs belong to a dataset, and wraps functions so that they refuse all others."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._n_patterns = 0
        self.repository = re.escape(name)
        local = user_path(name)
        self.folder = Path(os.path.abspath(local if local.is_dir() else local.parent)) if local.exists() else None

    def check_pattern(self, resolve: Function) -> Function:
        def checked(pattern: str, base_path: str, *arguments: Any, **options: Any) -> Any:
            self._n_patterns += 1
            if self._n_patterns > MAX_PATTERNS:
                raise UserError(
                    f"dataset={self.name}: its description lists so many files and patterns that datasets would search more than "
                    f"{MAX_PATTERNS:,} times for them. Nothing was read. Give the files themselves as inputs."
                )
            whole = pattern if "://" in pattern or os.path.isabs(pattern) else f"{base_path}/{pattern}"
            if not self.includes(whole):
                raise self._refusal("its description names", pattern)
            return resolve(pattern, base_path, *arguments, **options)

        return checked

    def check_url(self, prepare: Function) -> Function:
        def checked(urlpath: str, *arguments: Any, **options: Any) -> Any:
            *hops, file = urlpath.split("::")
            # After another protocol, fsspec takes a plain word for a protocol too.
            is_named_fully = not hops or file.startswith((os.sep, HUB, _hub_endpoint()))
            is_in_archive = len(hops) <= 1 and all(hop.startswith(tuple(f"{form}://" for form in ARCHIVES)) for hop in hops)
            if not (is_named_fully and is_in_archive and self.includes(file)):
                raise self._refusal("one of its files is named" if hops else "it names", urlpath)
            return prepare(urlpath, *arguments, **options)

        return checked

    def check_protocol(self, find: Function) -> Function:
        def checked(protocol: str) -> Any:
            if protocol and protocol not in PROTOCOLS:
                raise self._refusal("it asks for", f"{protocol}:")
            return find(protocol)

        return checked

    def check_description(self, load: Function) -> Function:
        def checked(stream: Any, Loader: Any) -> Any:
            content = stream if isinstance(stream, str | bytes) else stream.read()
            try:
                if len(content) > MAX_DESCRIPTION:
                    raise DamagedFileError(f"it has more than {MAX_DESCRIPTION:,} characters")
                parse_yaml_value(content)
            except DamagedFileError as error:
                raise UserError(f"dataset={self.name}: its description is not read: {error}.") from error
            return load(content, Loader)

        return checked

    def check_metadata(self, get: Function) -> Function:
        from huggingface_hub.errors import EntryNotFoundError

        from gpt_pretrain.system.hub import check_hub_answer, check_hub_commit

        def checked(*arguments: Any, **options: Any) -> Any:
            name = f"dataset={self.name}"
            try:
                stated = get(*arguments, **options)
            except EntryNotFoundError as error:  # The cache notes a missing file, under the commit that the hub states.
                answer = getattr(error, "response", None)
                if answer is not None and (commit := answer.headers.get("X-Repo-Commit")) is not None:
                    check_hub_commit(name, commit)
                raise
            check_hub_answer(name, stated.etag, stated.commit_hash, stated.size)
            return stated

        return checked

    def check_info(self, get: Function) -> Function:
        from gpt_pretrain.system.hub import check_hub_commit

        def checked(*arguments: Any, **options: Any) -> Any:
            info = get(*arguments, **options)
            check_hub_commit(f"dataset={self.name}", info.sha)
            return info

        return checked

    def includes(self, path: str) -> bool:
        """Return whether a path, a pattern or a URL leads only to files of the dataset."""
        if "::" in path or ".." in Path(path).parts:
            return False
        if self.folder is not None:
            return "://" not in path and Path(os.path.abspath(path)).is_relative_to(self.folder)
        endpoint = _hub_endpoint()
        url = HUB + path.removeprefix(endpoint).replace("/resolve/", "@", 1) if path.startswith(endpoint) else path
        # A dataset without an owner in its typed name may have one on the hub.
        repository = f"{self.repository}[@/]" if "/" in self.name else f"(?:[^/@]+/{self.repository}[@/]|{self.repository}@)"
        return re.match(re.escape(HUB) + repository, url) is not None

    def _refusal(self, where: str, what: str) -> UserError:
        return UserError(
            f"dataset={self.name}: {where} {what}, which is not a file of the dataset itself and could be any file of this "
            "machine. It was not read. If you trust it, download or unpack the files and give them as inputs."
        )


def _with_short_pauses(clock: Any) -> Any:
    """Return the module `time` with shorter pauses. huggingface_hub (2.4) waits for as many seconds as the hub states."""
    return SimpleNamespace(**{**vars(clock), "sleep": lambda seconds: clock.sleep(min(seconds, LONGEST_PAUSE))})


def _limit_content(open_file: Function) -> Function:
    def limited(system: Any, path: str, *arguments: Any, **options: Any) -> BinaryIO:
        stream = open_file(system, path, *arguments, **options)
        size = system.info(system.uncompressed_name)["size"]
        return io.BufferedReader(LimitedStream(stream, max_content(size or 0)))

    return limited


def _check_archive(open_archive: Function) -> Function:
    def checked(system: Any, *arguments: Any, **options: Any) -> None:
        if len(type(system)._cache) >= MAX_OPEN:
            type(system).clear_instance_cache()
        open_archive(system, *arguments, **options)
        check_no_overlap(system.zip)

    return checked


def _limit_member(open_file: Function) -> Function:
    def limited(system: Any, path: str, *arguments: Any, **options: Any) -> BinaryIO:
        stream: BinaryIO = open_file(system, path, *arguments, **options)
        compressed = system.info(system._strip_protocol(path))["compress_size"]
        return io.BufferedReader(LimitedStream(stream, max_content(compressed)))

    return limited


def _hub_endpoint() -> str:
    from datasets import config

    return f"{config.HF_ENDPOINT}/datasets/"


@contextmanager
def _wrapped(owner_name: str, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Replace a function, or an attribute, during the block.

    Args:
        owner_name: Its module, or "module:Class".

    Raises:
        AttributeError: If a newer release has no such function, so that nothing is read without the check.
    """
    module, _, class_name = owner_name.partition(":")
    owner: Any = importlib.import_module(module)
    owner = getattr(owner, class_name) if class_name else owner
    original = getattr(owner, name)
    setattr(owner, name, wrap(original))
    try:
        yield
    finally:
        setattr(owner, name, original)
