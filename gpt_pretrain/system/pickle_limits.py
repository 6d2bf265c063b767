"""The limits of what one pickle may make: a few bytes could otherwise fill the memory or take hours."""

from __future__ import annotations

from gpt_pretrain.system.number_keys import KeyCounter
from gpt_pretrain.system.reading import DamagedFileError

# The checkpoint of a run has about 1,000 opcodes, and one more for each evaluation. A million take a second.
MAX_OPCODES = 3_000_000
MAX_CONTAINERS = 500_000  # An empty container takes up to 64 bytes of memory, and one byte of the file.
MAX_CALLS = 200_000  # A tensor takes about 600 bytes of memory, and three bytes of the file.
MAX_SHARED = 1_000_000  # A value that may be named again takes 130 bytes of memory, and one byte of the file.
FREE_COPIES = 1_000_000  # characters and items that may be copied beyond the size of the file
MAX_TEXT_LINE = 1000  # bytes of a name
FREE_KEY = 200  # characters of a text that cost nothing when the text is a key or is used again
# A shared value has a number. Each number may exceed the count of the values before by this gap, so that it cannot be chosen to
# collide with others in a dict.
MAX_GAP = 100


class PickleCounter:
    """Counts what a pickle makes.

    Args:
        size: Bytes of the file.

    Attributes:
        keys: Counts the keys of its dicts.
    """

    def __init__(self, size: int) -> None:
        self.keys = KeyCounter()
        self._copies_left = size + FREE_COPIES
        self._n_containers = self._n_calls = 0

    def add_container(self) -> None:
        """Count a list, tuple, dict or result of a call."""
        self._n_containers += 1
        if self._n_containers > MAX_CONTAINERS:
            raise DamagedFileError(f"it has more than {MAX_CONTAINERS:,} containers")

    def add_call(self) -> None:
        """Count a call."""
        self._n_calls += 1
        if self._n_calls > MAX_CALLS:
            raise DamagedFileError(f"it makes more than {MAX_CALLS:,} calls")

    def spend(self, amount: int) -> None:
        """Count characters or items that are copied or searched. The file may name them again with a byte or two."""
        self._copies_left -= amount
        if self._copies_left < 0:
            raise DamagedFileError("its calls, keys and texts would copy far more than it holds")
