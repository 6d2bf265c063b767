"""Read pickles that anybody may have written: nothing is imported, called or built while a pickle is read.

A pickle is a program for a small stack machine. The machine here knows plain values and containers. Whatever a pickle would
import stays a `PickledName`, and whatever it would call is looked up in a table of harmless stand-ins.

Source: the opcodes are described in Python's `pickletools`.
"""

from __future__ import annotations

import io
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from typing import IO, Any

from gpt_pretrain.system.nested_values import MAX_REPEATED, check_values, check_written_length
from gpt_pretrain.system.number_keys import KeyCounter, check_key
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

# The checkpoint of a run has about 1,000 opcodes, and one more for each evaluation. A million take a second.
MAX_OPCODES = 3_000_000
MAX_CONTAINERS = 500_000  # An empty one takes up to 64 bytes of memory, and one byte in the file.
MAX_CALLS = 200_000  # A tensor takes about 600 bytes, and three bytes in the file.
# Characters and items that calls, keys and texts may copy beyond the size of the file: a shared text is passed in a byte.
FREE_COPIES = 1_000_000
MAX_TEXT_LINE = 1000  # Bytes of a name.
FREE_KEY = 200  # Characters of a key that are read again and again without being counted.
# Between the number of a value that is shared and the next one. Numbers in no order could be made to collide in a dict.
MAX_GAP = 100

PLAIN = PickleRules(calls={})


def read_pickle(stream: IO[bytes], rules: PickleRules = PLAIN, *, size: int) -> Any:
    """Read the pickle that begins at the position of a stream, up to its end.

    Args:
        size: Bytes of the stream. No length in the pickle may lead beyond it, and nothing that is shared in it may stand for
            more values than this.

    Raises:
        RefusedNameError: If the pickle would import something that the rules do not allow.
        DamagedFileError: If it is no pickle, or not of plain data, or too large for its size.
    """
    try:
        found = _StackMachine(rules, budget=size + FREE_COPIES).run(_BoundedStream(stream, size))
    except DamagedFileError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, EOFError) as error:
        reason = str(error)[:100] if type(error) is ValueError else "it is damaged"
        raise DamagedFileError(f"it cannot be read as a pickle ({reason})") from error
    check_values(found, max_values=size + 1000)
    check_written_length(found, size, with_groups=False)
    return found


def read_plain_pickle(content: bytes) -> Any:
    """Read a pickle of plain values, lists, tuples and dicts.

    Raises:
        DamagedFileError: If it holds anything else, or is damaged.
    """
    return read_pickle(io.BytesIO(content), size=len(content))


class _BoundedStream:
    """A stream that never allocates more for a length in a file than the file has."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._size = stream, size
        self.tell = stream.tell

    def read(self, count: int) -> bytes:
        if count > 16 and count > self._size - self.tell():
            raise ValueError("a length leads beyond the end of the file")
        return self._stream.read(count)

    def readline(self) -> bytes:
        return self._stream.readline(MAX_TEXT_LINE)


class _StackMachine:
    def __init__(self, rules: PickleRules, *, budget: int) -> None:
        self._rules = rules
        self._budget = budget
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._containers = self._calls = 0
        self._keys = KeyCounter()

    def run(self, stream: _BoundedStream) -> Any:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
            if number >= MAX_OPCODES:
                raise DamagedFileError(f"it has more than {MAX_OPCODES:,} opcodes")
            name = opcode.name
            if name == "STOP":  # without which pickletools raises a ValueError
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
        self._count_container()
        self._marks.append(self._stack)
        self._stack = []

    def put(self, index: int) -> None:
        if not 0 <= index <= len(self._memo) + MAX_GAP:
            raise ValueError("it gives a shared value an impossible number")
        self._memo[index] = self._stack[-1]

    def memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

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
        self._spend(len(text))
        self._push_name(text)

    def call(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        known = isinstance(function, PickledName) and function.name in self._rules.calls
        if not isinstance(arguments, tuple) or not (known or self._rules.inert):
            raise RefusedNameError(
                function.name if isinstance(function, PickledName) else "a call of something that is not a function"
            )
        self._spend(sum(1 + _length(argument) for argument in arguments))
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise DamagedFileError(f"it makes more than {MAX_CALLS:,} calls")
        self._add(self._rules.calls[function.name](*arguments) if known else inert_object(function, arguments))

    def call_with_keywords(self, _: None) -> None:
        keywords, arguments, function = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._spend(_length(arguments))
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
        self._count_container()

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
        """Push a value that the file holds once. A long text counts each time, since its readers go through it each time."""
        if isinstance(value, str | bytes) and len(value) > FREE_KEY:
            self._spend(len(value) // MAX_REPEATED)
        self._stack.append(value)

    def _add(self, container: Any) -> None:
        self._count_container()
        self._stack.append(container)

    def _count_container(self) -> None:
        self._containers += 1
        if self._containers > MAX_CONTAINERS:
            raise DamagedFileError(f"it has more than {MAX_CONTAINERS:,} containers")

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
                self._spend(max(_length(part) - FREE_KEY, 0))
            n_before = len(target)
            target[key] = value
            self._keys.add(key, n_before, is_new=len(target) > n_before)

    def _spend(self, amount: int) -> None:
        """Count what is copied or searched, since a file needs only a byte or two to name again what it holds once."""
        self._budget -= amount
        if self._budget < 0:
            raise DamagedFileError("its calls, keys and texts would copy far more than it holds")

    def _push_name(self, name: str) -> None:
        known = name in self._rules.calls or name in self._rules.names
        if not known and (not self._rules.inert or name in ATTACKS or name.partition(".")[0] in ATTACKS):
            raise RefusedNameError(name)
        self._stack.append(PickledName(name))


def _length(value: Any) -> int:
    """Return the number of characters or items of a value, those of tuples within a tuple included."""
    if isinstance(value, tuple):
        return len(value) + sum(len(part) for part in value if isinstance(part, tuple | str | bytes))
    return len(value) if isinstance(value, str | bytes | list | dict | set) else 0


VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    "BYTEARRAY8",
}
# Objects as keys, which would all have to be hashed; none is of use.
INERT_KEYS = (InertObject, PickledName, PickledReference)
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
IGNORED = {"PROTO", "FRAME"}
OPERATIONS: dict[str, Callable[[_StackMachine, Any], None]] = {
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "PUT"), _StackMachine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET", "GET"), _StackMachine.get),
    "MEMOIZE": _StackMachine.memoize,
    "MARK": _StackMachine.mark,
    "EMPTY_LIST": _StackMachine.empty_list,
    "EMPTY_DICT": _StackMachine.empty_dict,
    "LIST": _StackMachine.make_list,
    "DICT": _StackMachine.make_dict,
    "TUPLE": _StackMachine.make_tuple,
    "TUPLE1": lambda machine, _: machine.take(1),
    "TUPLE2": lambda machine, _: machine.take(2),
    "TUPLE3": lambda machine, _: machine.take(3),
    "APPEND": _StackMachine.append,
    "APPENDS": _StackMachine.appends,
    "SETITEM": _StackMachine.setitem,
    "SETITEMS": _StackMachine.setitems,
    "GLOBAL": _StackMachine.global_name,
    "STACK_GLOBAL": _StackMachine.stack_global,
    "REDUCE": _StackMachine.call,
    "BUILD": _StackMachine.build,
    "BINPERSID": _StackMachine.reference,
}
# Only allowed by rules that leave objects inert.
INERT_OPERATIONS: dict[str, Callable[[_StackMachine, Any], None]] = {
    "NEWOBJ": _StackMachine.call,
    "NEWOBJ_EX": _StackMachine.call_with_keywords,
    "OBJ": _StackMachine.call_marked,
    "INST": _StackMachine.call_marked,
    "EMPTY_SET": _StackMachine.empty_list,
    "ADDITEMS": _StackMachine.appends,
    "FROZENSET": _StackMachine.make_tuple,
    "POP": _StackMachine.pop,
    "POP_MARK": _StackMachine.pop_mark,
    "DUP": _StackMachine.duplicate,
}
