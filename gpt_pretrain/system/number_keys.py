"""Limit the keys in dicts from a stranger's file that could be chosen to collide, which would make a dict very slow.

Python mixes a secret into the hashes of texts and bytes, but not into those of numbers. So the writer of a file can choose large
numbers with equal hashes. Small numbers can collide too: their bits alone decide which slots of the dict are tried for them.
"""

from __future__ import annotations

from gpt_pretrain.system.reading import DamagedFileError

MAX_KEY = 1 << 60  # No whole number beyond this is accepted as a key: many of them have the same hash.
SMALL_KEY = 1 << 31  # Whole numbers beyond this can be chosen so that they collide in several ways.
MAX_ODD_KEYS = 1000  # tuples, fractions and large numbers in one file, which could all have the same hash
FEW_KEYS = 256  # keys of a dict in which every search is short
# Small numbers in one file that repeat a key, or do not follow one another from 0 or 1 on. Each of them could search half of the
# others.
MAX_UNORDERED_KEYS = 10_000
MAX_PARTS = 20  # parts of a tuple; all of them are hashed each time that the tuple is a key


class KeyCounter:
    """Counts the keys of all dicts, and the items of all sets, in one file."""

    def __init__(self) -> None:
        self._odd = self._unordered = 0

    def add(self, key: object, n_before: int, *, is_new: bool = True) -> None:
        """Count a key that is put into a dict, or an item that is put into a set.

        Args:
            n_before: The number of keys in the dict before.
            is_new: Whether this key was not among them.

        Raises:
            DamagedFileError: If too many keys could collide.
        """
        if isinstance(key, tuple | float) or (isinstance(key, int) and abs(key) > SMALL_KEY):
            self._odd += 1
        elif isinstance(key, int) and n_before >= FEW_KEYS and not (is_new and 0 <= key - n_before <= 1):
            self._unordered += 1
        if self._odd > MAX_ODD_KEYS:
            raise DamagedFileError(f"more than {MAX_ODD_KEYS:,} keys of its dicts are tuples, large numbers or fractions")
        if self._unordered > MAX_UNORDERED_KEYS:
            raise DamagedFileError(f"more than {MAX_UNORDERED_KEYS:,} keys of its dicts are numbers in no order")


def check_key(key: object) -> None:
    """Check that a value, or each part of a tuple, can be a key of a dict or an item of a set.

    Raises:
        DamagedFileError: If not.
    """
    if isinstance(key, tuple) and len(key) > MAX_PARTS:
        raise DamagedFileError(f"a key of a dict has {len(key):,} parts, more than the limit of {MAX_PARTS}")
    for part in key if isinstance(key, tuple) else (key,):
        is_large = isinstance(part, int) and abs(part) > MAX_KEY
        if is_large or (part is not None and not isinstance(part, str | int | float | bytes)):
            raise DamagedFileError(f"a key of a dict is a {'large number' if is_large else type(part).__name__}")
