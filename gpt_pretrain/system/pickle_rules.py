"""The rules for reading a pickle, and the harmless objects that stand for what it would import, call or build."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from gpt_pretrain.system.formatting import shorten_middle
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.terminal import escape_line

MAX_NAME = 200  # characters of a name in a message

# Modules and functions that attacks use and honest data never needs.
ATTACKS = {
    *("os", "posix", "nt", "subprocess", "shutil", "socket", "sys", "importlib", "runpy", "pty", "ctypes", "webbrowser", "code"),
    *(f"builtins.{name}" for name in ("eval", "exec", "compile", "__import__", "open", "input", "breakpoint", "globals")),
}

Call = Callable[..., Any]


class RefusedNameError(DamagedFileError):
    """A pickle needs something that is not plain data.

    Attributes:
        name: The name that it would import, such as "os.system".
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"it needs {escape_line(shorten_middle(name, MAX_NAME))}")
        self.name = name


@dataclass(frozen=True)
class PickledName:
    """Something that a pickle would import."""

    name: str


@dataclass(frozen=True)
class PickledReference:
    """Something that a pickle expects outside of itself."""

    key: Any


@dataclass
class InertObject:
    """Stands for an object whose class is not imported.

    Args:
        name: The class, or the function that would build the object.
        arguments: The arguments of that class or function.
        state: The attributes that the pickle would set.
        items: The items, if the class is a kind of dict or list.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] | list[Any] | None = None


@dataclass(frozen=True)
class PickleRules:
    """The list of what a pickle may hold besides plain values, lists, tuples and dicts.

    Args:
        calls: The functions that it may call, each with a stand-in that gets the same arguments.
        names: Further names that it may mention, but not call.
        references: Whether it may refer to something outside of itself.
        build: Gets an object and the state that the pickle would give it.
        inert: Whether it may also name and call anything else, except for `ATTACKS`. An `InertObject` stands for each result.
    """

    calls: Mapping[str, Call]
    names: Collection[str] = ()
    references: bool = False
    build: Call | None = None
    inert: bool = False


def inert_object(function: Any, arguments: tuple[Any, ...]) -> InertObject:
    """Return the object that stands for the result of a call."""
    # The first argument of these two functions is the class of the object.
    if isinstance(function, PickledName) and function.name in ("copyreg._reconstructor", "copyreg.__newobj__") and arguments:
        function, *rest = arguments
        arguments = tuple(rest)
    return InertObject(function.name if isinstance(function, PickledName) else "a call of something else", arguments)
