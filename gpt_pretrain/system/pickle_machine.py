"""Carry out the opcodes of a pickle without importing, calling or building anything.

A pickle is a program for a small stack machine. The machine here knows plain values and containers. A name that the pickle would
import becomes a `PickledName`. A function that it would call is replaced by a harmless stand-in from the rules.

Source: Python's `pickletools` describes the opcodes.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from typing import IO, Any

from gpt_pretrain.system.nested_values import MAX_REPEATED
from gpt_pretrain.system.number_keys import check_key
from gpt_pretrain.system.pickle_limits import FREE_KEY, MAX_GAP, MAX_OPCODES, MAX_SHARED, MAX_TEXT_LINE, PickleCounter
from gpt_pretrain.system.pickle_rules import (
    ATTACKS,
    InertObject,
    PickledName,
    PickledReference,
    PickleRules,
    RefusedNameError,
    inert_object,
)
from gpt_pretrain.system.reading import DamagedFileError


class StackMachine:
    """Reads one pickle. `run` reads it; every other public method carries out one opcode.

    Args:
        rules: What the pickle may hold besides plain values.
        size: Bytes of the file.
    """

    def __init__(self, rules: PickleRules, *, size: int) -> None:
        self._rules = rules
        self._counter = PickleCounter(size)
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: IO[bytes]) -> Any:
        """Return the value that the pickle describes.

        Raises:
            RefusedNameError: If it needs something that the rules do not allow.
            DamagedFileError: If it exceeds a limit. Other damage raises the exception of the operation that fails.
        """
        for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if number >= MAX_OPCODES:
                raise DamagedFileError(f"it has more than {MAX_OPCODES:,} opcodes")
            name = opcode.name
            if name == "STOP":  # If it is missing, pickletools raises a ValueError.
                break
            if name in VALUES:
                self._stack.append(argument)
            elif name in CONSTANTS:
                self._stack.append(CONSTANTS[name])
            elif name in IGNORED:
                continue
            elif (operation := OPERATIONS.get(name)) is not None:
                operation(self, argument)
            elif (operation := INERT_OPERATIONS.get(name)) is not None:
                if not self._rules.inert:
                    raise RefusedNameError(f"the opcode {name}")
                operation(self, argument)
            else:
                raise ValueError(f"it has the opcode {name}")
        return self._stack.pop()

    def mark(self, _: None) -> None:
        self._counter.add_container()
        self._marks.append(self._stack)
        self._stack = []

    def put(self, index: int) -> None:
        if not 0 <= index <= len(self._memo) + MAX_GAP:
            raise ValueError("it gives a shared value an impossible number")
        self._memo[index] = self._stack[-1]
        if len(self._memo) > MAX_SHARED:
            raise DamagedFileError(f"it has more than {MAX_SHARED:,} values that may be named again")

    def memoize(self, _: None) -> None:
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        self._repeat(self._memo[index])

    def empty_list(self, _: None) -> None:
        self._add([])

    def empty_dict(self, _: None) -> None:
        self._add({})

    def make_list(self, _: None) -> None:
        self._add(self._pop_mark())

    def make_tuple(self, _: None) -> None:
        self._add(tuple(self._pop_mark()))

    def make_dict(self, _: None) -> None:
        items = self._pop_mark()
        self._add({})
        self._set(items)

    def append(self, _: None) -> None:
        value = self._stack.pop()
        self._extend([value])

    def appends(self, _: None) -> None:
        self._extend(self._pop_mark())

    def setitem(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def setitems(self, _: None) -> None:
        self._set(self._pop_mark())

    def global_name(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        # Python 2 had other names for some modules.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self._push_name(f"{module}.{name}")

    def stack_global(self, _: None) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name is not a string")
        text = f"{module[:MAX_TEXT_LINE]}.{name[:MAX_TEXT_LINE]}"
        self._counter.spend(len(text))
        self._push_name(text)

    def call(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        known = isinstance(function, PickledName) and function.name in self._rules.calls
        if not isinstance(arguments, tuple) or not (known or self._rules.inert):
            raise RefusedNameError(
                function.name if isinstance(function, PickledName) else "a call of something that is not a function"
            )
        self._counter.spend(sum(1 + _length(argument) for argument in arguments))
        self._counter.add_call()
        self._add(self._rules.calls[function.name](*arguments) if known else inert_object(function, arguments))

    def call_with_keywords(self, _: None) -> None:
        keywords, arguments, function = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._counter.spend(_length(arguments))
        self._stack += [function, (*arguments, keywords)]
        self.call(None)

    def call_marked(self, argument: str | None) -> None:
        items = self._pop_mark()
        if argument is None:
            self._stack.append(items[0])
        else:
            self.global_name(argument)
        self._stack.append(tuple(items[argument is None :]))
        self.call(None)

    def build(self, _: None) -> None:
        state = self._stack.pop()
        if isinstance(target := self._stack[-1], InertObject):
            target.state = state
            return
        if self._rules.build is None:
            raise ValueError("it would build an object")
        self._rules.build(self._stack[-1], state)

    def reference(self, _: None) -> None:
        key = self._stack.pop()
        if not self._rules.references:
            raise ValueError("it refers to something outside of the file")
        self._stack.append(PickledReference(key))

    def take(self, count: int) -> None:
        if len(self._stack) < count:
            raise ValueError("its stack is too short")
        self._stack[len(self._stack) - count :] = [tuple(self._stack[len(self._stack) - count :])]
        self._counter.add_container()

    def pop(self, _: None) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._stack = self._marks.pop()

    def pop_mark(self, _: None) -> None:
        self._pop_mark()

    def duplicate(self, _: None) -> None:
        self._repeat(self._stack[-1])

    def _repeat(self, value: Any) -> None:
        """Push a value again that the file holds once. A long text counts each time: whoever reads the values reads it again."""
        if isinstance(value, str | bytes) and len(value) > FREE_KEY:
            self._counter.spend(len(value) // MAX_REPEATED)
        self._stack.append(value)

    def _add(self, container: Any) -> None:
        self._counter.add_container()
        self._stack.append(container)

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, InertObject):
            target.items = target.items if isinstance(target.items, list) else []
            target = target.items
        if not isinstance(target, list):
            raise ValueError(f"it appends to a {type(target).__name__}")
        target += values

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, InertObject):
            target.items = target.items if isinstance(target.items, dict) else {}
            target = target.items
        if not isinstance(target, dict):
            raise ValueError(f"it sets an item of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if self._rules.inert and isinstance(key, INERT_KEYS):
                continue
            check_key(key)
            for part in key if isinstance(key, tuple) else (key,):
                self._counter.spend(max(_length(part) - FREE_KEY, 0))
            n_before = len(target)
            target[key] = value
            self._counter.keys.add(key, n_before, is_new=len(target) > n_before)

    def _push_name(self, name: str) -> None:
        known = name in self._rules.calls or name in self._rules.names
        if not known and (not self._rules.inert or name in ATTACKS or name.partition(".")[0] in ATTACKS):
            raise RefusedNameError(name)
        self._stack.append(PickledName(name))


def _length(value: Any) -> int:
    """Return the number of characters or items of a value. In a tuple, the items of its texts and tuples count too."""
    if isinstance(value, tuple):
        return len(value) + sum(len(part) for part in value if isinstance(part, tuple | str | bytes))
    return len(value) if isinstance(value, str | bytes | list | dict | set) else 0


VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    "BYTEARRAY8",
}
# An item with such a key is left out: nobody reads it, and hashing the key takes time.
INERT_KEYS = (InertObject, PickledName, PickledReference)
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
IGNORED = {"PROTO", "FRAME"}
OPERATIONS: dict[str, Callable[[StackMachine, Any], None]] = {
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "PUT"), StackMachine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET", "GET"), StackMachine.get),
    "MEMOIZE": StackMachine.memoize,
    "MARK": StackMachine.mark,
    "EMPTY_LIST": StackMachine.empty_list,
    "EMPTY_DICT": StackMachine.empty_dict,
    "LIST": StackMachine.make_list,
    "DICT": StackMachine.make_dict,
    "TUPLE": StackMachine.make_tuple,
    "TUPLE1": lambda machine, _: machine.take(1),
    "TUPLE2": lambda machine, _: machine.take(2),
    "TUPLE3": lambda machine, _: machine.take(3),
    "APPEND": StackMachine.append,
    "APPENDS": StackMachine.appends,
    "SETITEM": StackMachine.setitem,
    "SETITEMS": StackMachine.setitems,
    "GLOBAL": StackMachine.global_name,
    "STACK_GLOBAL": StackMachine.stack_global,
    "REDUCE": StackMachine.call,
    "BUILD": StackMachine.build,
    "BINPERSID": StackMachine.reference,
}
# These opcodes build objects. They are read only if the rules let an `InertObject` stand for each.
INERT_OPERATIONS: dict[str, Callable[[StackMachine, Any], None]] = {
    "NEWOBJ": StackMachine.call,
    "NEWOBJ_EX": StackMachine.call_with_keywords,
    "OBJ": StackMachine.call_marked,
    "INST": StackMachine.call_marked,
    "EMPTY_SET": StackMachine.empty_list,
    "ADDITEMS": StackMachine.appends,
    "FROZENSET": StackMachine.make_tuple,
    "POP": StackMachine.pop,
    "POP_MARK": StackMachine.pop_mark,
    "DUP": StackMachine.duplicate,
}
