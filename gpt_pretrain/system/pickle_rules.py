"""The rules by which a pickle is read, and the objects that take the place of what it would import, call or build."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from gpt_pretrain.system.formatting import shorten_middle
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.terminal import escape_line

MAX_NAME = 200  # characters in a message

# Modules and functions that an attack needs, and that honest data does not.
ATTACKS = {
    *("os", "posix", "nt", "subprocess", "shutil", "socket", "sys", "importlib", "runpy", "pty", "ctypes", "webbrowser", "code"),
    *(f"builtins.{name}" for name in ("eval", "exec", "compile", "__import__", "open", "input", "breakpoint", "globals")),
}

Call = Callable[..., Any]


class RefusedNameError(DamagedFileError):
    """A pickle needs something that is not plain data.

    Attributes:
        name: What it would import, such as "os.system".
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
    """Stands for an object of a class that is not imported.

    Args:
        name: The class, or the function that would build the object.
        arguments: The arguments of that call.
        state: The attributes that the pickle would set.
        items: The items of a subclass of dict or list.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] | list[Any] | None = None


@dataclass(frozen=True)
class PickleRules:
    """Everything that a pickle may hold besides plain values, lists, tuples and dicts.

    Args:
        calls: For each function that it may call, a stand-in that gets the same arguments.
        names: Other names that it may mention, but not call.
        references: It may refer to something outside of itself.
        build: Gets an object and the state that the pickle would give it.
        inert: It may mention and call anything else too, and an `InertObject` takes the place of the result. Only names that
            no file has an honest use for are refused.
    """

    calls: Mapping[str, Call]
    names: Collection[str] = ()
    references: bool = False
    build: Call | None = None
    inert: bool = False


def inert_object(function: Any, arguments: tuple[Any, ...]) -> InertObject:
    """Return the object that takes the place of a call's result."""
    # These two build an object of the class that is their first argument.
    if isinstance(function, PickledName) and function.name in ("copyreg._reconstructor", "copyreg.__newobj__") and arguments:
        function, *rest = arguments
        arguments = tuple(rest)
    return InertObject(function.name if isinstance(function, PickledName) else "a call of something else", arguments)
