"""Import and build the classes that the user names in the settings.

Only names that the user has typed, or that are in the user's own configs, are imported; see `config/custom_parts.py`.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate

from gpt_pretrain.config.custom_parts import TARGET
from gpt_pretrain.errors import UserError


def find_target(name: str, *, setting: str) -> Any:
    """Import a class or function by its dotted name. Installed modules come before those in the current folder.

    Raises:
        UserError: If there is no such module or name, if importing it fails, or if it can't be called.
    """
    parts = name.split(".")
    with _current_folder(parts[0]):
        module, rest = _import_longest(parts, setting=setting)
    found: Any = module
    for part in rest:
        if not hasattr(found, part):
            raise UserError(f"{setting}={name}: {_describe(found)} has no {part}.{_nearest(found, part)}")
        found = getattr(found, part)
    if isinstance(found, ModuleType):
        raise UserError(f"{setting}={name} is a module. Add the name of a class or function in it.")
    if not callable(found):
        raise UserError(f"{setting}={name} is a value of type {type(found).__name__}, not a class or function.")
    return found


@contextmanager
def _current_folder(package: str) -> Iterator[None]:
    """Let Python find a package in the current folder during the block, unless it is installed.

    The folder is not searched at other times, since libraries may try to import optional packages at any time, and a stranger's
    folder could have the name of one.
    """
    here = str(Path.cwd())
    if here in sys.path or _is_installed(package, here=here):
        yield
        return
    sys.path.append(here)  # Installed packages come first.
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's module may have removed it
            sys.path.remove(here)


def _is_installed(package: str, *, here: str) -> bool:
    """Return whether a package is found outside of the current folder. It may already be imported from that folder."""
    try:
        found = find_spec(package)
    except ValueError:  # a module without a specification, such as __main__
        return True
    if found is None:
        return False
    paths = list(found.submodule_search_locations or [found.origin or ""])
    return all(os.path.dirname(path) != here for path in paths)


def _import_longest(parts: list[str], *, setting: str) -> tuple[ModuleType, list[str]]:
    """Import as many parts of a dotted name as are modules. Return the last module and the other parts."""
    name, module = ".".join(parts), None
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if module is not None and hasattr(module, parts[end - 1]) and path not in sys.modules:
            return module, parts[end - 1 :]
        try:
            module = import_module(path)
        except ModuleNotFoundError as error:
            if error.name != path and not path.startswith(f"{error.name}."):
                raise UserError(_failed_import(setting, name, path, error)) from error
            if module is None:
                raise UserError(
                    f"{setting}={name}: there is no module {path}, neither installed nor in the current folder {Path.cwd()}. "
                    "Check its name, install it, or start in the folder that holds it."
                ) from None
            return module, parts[end - 1 :]
        except Exception as error:  # whatever the user's module raises
            raise UserError(_failed_import(setting, name, path, error)) from error
    assert module is not None
    return module, []


def _failed_import(setting: str, name: str, path: str, error: Exception) -> str:
    return f"{setting}={name}: importing {path} fails: {describe_failure(error)}"


def describe_failure(error: BaseException) -> str:
    """Describe an exception of the user's code on one line, with the file and the line that raised it."""
    last = (traceback.extract_tb(error.__traceback__) or [None])[-1]
    of_others = last is None or "importlib" in last.filename or f"{os.sep}hydra{os.sep}" in last.filename
    where = "" if last is None or of_others else f" ({last.filename}, line {last.lineno})"
    message = str(error).strip() or "no reason given"
    if not isinstance(error, HydraException):  # Hydra breaks the sentences of its own into lines.
        message = message.splitlines()[0]
    return f"{type(error).__name__}: {' '.join(message.split())}{where}"


def _describe(found: Any) -> str:
    return f"the module {found.__name__}" if isinstance(found, ModuleType) else getattr(found, "__qualname__", str(found))


def _nearest(found: Any, part: str) -> str:
    import difflib

    close = difflib.get_close_matches(part, [name for name in dir(found) if not name.startswith("_")], n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def call_target(fields: Mapping[str, Any], *positional: Any, setting: str, **given: Any) -> Any:
    """Call the class or function that a group of settings names.

    Args:
        fields: The `_target_` and the arguments, which may name further classes.
        positional: Arguments that come first.
        setting: The name of the group.
        given: Arguments that are passed if the callable has parameters of these names and the fields leave them out.

    Raises:
        UserError: If the callable does not accept the arguments, or fails.
    """
    name = str(fields[TARGET])
    target = find_target(name, setting=f"{setting}.{TARGET}")
    known = parameters_of(target)
    given = {key: value for key, value in given.items() if key in known and key not in fields}
    for inner in _inner_targets(list(fields.values())):
        find_target(inner, setting=f"{setting}.{TARGET}")
    try:
        bound = instantiate({**fields, "_partial_": True, "_convert_": "all"})
        return bound(*positional, **given)
    except Exception as error:  # whatever the user's code raises; Hydra wraps it
        cause = error.__cause__ or error
        raise UserError(
            f"{setting}.{TARGET}={name} cannot be built: {describe_failure(cause)}{_expected(cause, known)}"
        ) from error


def _inner_targets(values: list[Any]) -> Iterator[str]:
    """Yield the classes that arguments name. They are imported here first, since Hydra does not look in the current folder."""
    for value in values:
        if isinstance(value, Mapping):
            if isinstance(name := value.get(TARGET), str):
                yield name
            yield from _inner_targets(list(value.values()))
        elif isinstance(value, list | tuple):
            yield from _inner_targets(list(value))


def parameters_of(target: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class or function by name, or an empty dict if Python cannot tell."""
    try:
        return dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return {}


def _expected(error: BaseException, known: Mapping[str, inspect.Parameter]) -> str:
    return f". Its arguments are {', '.join(known)}." if isinstance(error, TypeError) and known else ""
