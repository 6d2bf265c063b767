"""Memory that forked workers share with the main process: passing a megabyte through it costs a tenth of what a pipe costs."""

from __future__ import annotations

import mmap
import pickle
from collections.abc import Callable
from typing import Any

SLOT = 1 << 22  # Bytes. A batch of text, or its token ids, hardly ever takes more; a longer message goes through the pipe.
SHORT = 1 << 14  # Bytes of a message that a pipe takes at once.

# What stands for a message: its bytes, or the number of a slot and the length of the message in it.
Packed = bytes | tuple[int, int]


class SharedSlots:
    """Slots for a message each. Only the pages that a message has touched take memory.

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
        """Write an object to a slot, if it is long and fits."""
        message = pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
        if slot is None or self._memory is None or not SHORT < len(message) <= SLOT:
            return message
        self._memory[slot * SLOT : slot * SLOT + len(message)] = message
        return slot, len(message)

    def unpack(self, packed: Packed) -> Any:
        """Return the object that was packed, by this process or by a forked one."""
        if isinstance(packed, bytes):
            return pickle.loads(packed)
        assert self._memory is not None, "there are slots"
        slot, length = packed
        with memoryview(self._memory) as whole, whole[slot * SLOT : slot * SLOT + length] as message:
            return pickle.loads(message)


def run_packed(function: Callable[[Any], Any], packed: Packed, slot: int | None) -> Packed:
    """Call a function in a worker with the object that was packed, and pack the result into the same slot."""
    return _slots.pack(function(_slots.unpack(packed)), slot)


def share_slots(slots: SharedSlots) -> None:
    """Use these slots in this process, a worker."""
    global _slots
    _slots = slots


_slots = SharedSlots(0)
