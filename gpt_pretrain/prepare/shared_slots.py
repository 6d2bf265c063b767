"""Memory that forked workers share with the main process. Passing a message through it takes a tenth of a pipe's time."""

from __future__ import annotations

import mmap
import pickle
from collections.abc import Callable
from typing import Any

SLOT = 1 << 22  # Bytes. A batch of text or of token ids hardly ever takes more. A longer message uses the pipe.

# A packed message: its bytes, or the number of its slot and its length there.
Packed = bytes | tuple[int, int]


class SharedSlots:
    """Slots for one message each. Only the pages that a message has touched take memory.

    Args:
        count: Number of slots; 0 if there are no processes to share them with.
    """

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, count * SLOT) if count else None
        self._free = list(range(count))

    def take(self) -> int | None:
        """Return a free slot, if there is one."""
        return self._free.pop() if self._free else None

    def release(self, slot: int | None) -> None:
        """Make a slot free again."""
        if slot is not None:
            self._free.append(slot)

    def pack(self, content: Any, slot: int | None) -> Packed:
        """Write an object to a slot, if it fits, and return its packed form."""
        if slot is None or self._memory is None:
            return pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
        with memoryview(self._memory) as whole, whole[slot * SLOT : (slot + 1) * SLOT] as memory:
            writer = _SlotWriter(memory)
            try:
                pickle.dump(content, writer, protocol=pickle.HIGHEST_PROTOCOL)  # copies long texts and arrays only once
            except _SlotFullError:
                return pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
            return (slot, writer.length)

    def unpack(self, packed: Packed) -> Any:
        """Return the object that this process or a forked one has packed."""
        if isinstance(packed, bytes):
            return pickle.loads(packed)
        assert self._memory is not None, "there are slots"
        slot, length = packed
        with memoryview(self._memory) as whole, whole[slot * SLOT : slot * SLOT + length] as message:
            return pickle.loads(message)


class _SlotFullError(Exception):
    """A message is longer than a slot."""


class _SlotWriter:
    """A file in the memory of a slot."""

    def __init__(self, memory: memoryview) -> None:
        self._memory, self.length = memory, 0

    def write(self, data: bytes | pickle.PickleBuffer) -> None:
        """Append bytes.

        Raises:
            _SlotFullError: If they do not fit.
        """
        with memoryview(data) as content:
            end = self.length + content.nbytes
            if end > len(self._memory):
                raise _SlotFullError
            if content.nbytes:
                self._memory[self.length : end] = content.cast("B")
            self.length = end


def run_packed(function: Callable[[Any], Any], packed: Packed, slot: int | None) -> Packed:
    """Call a function in a worker with a packed object, and pack the result into the same slot."""
    return _slots.pack(function(_slots.unpack(packed)), slot)


def share_slots(slots: SharedSlots) -> None:
    """Use these slots in this worker process."""
    global _slots
    _slots = slots


_slots = SharedSlots(0)
