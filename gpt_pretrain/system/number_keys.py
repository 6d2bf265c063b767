"""Limit the keys of a stranger's dicts that could be chosen so that each of them searches the places of many others.

Python gives texts and bytes secret hashes, but not numbers. Equal hashes are only the simplest choice: where a number goes if its
place is taken follows from its bits, so that small numbers too can be sent along all places that others have filled.
"""

from __future__ import annotations

from gpt_pretrain.system.reading import DamagedFileError

# Whole numbers beyond the first could all be given the same hash, those beyond the second in several ways.
MAX_KEY, SMALL_KEY = 1 << 60, 1 << 31
MAX_ODD_KEYS = 1000  # that could all have the same hash
FEW_KEYS = 256  # of a dict in which every search is short
# Small numbers beyond those, in one file, that neither are new nor follow one another from 0 or 1 on. Each searches half of them.
MAX_UNORDERED_KEYS = 10_000
MAX_PARTS = 20  # Of a tuple, all of which are looked at each time that it is a key.


class KeyCounter:
    """Counts the keys of the dicts, and the items of the sets, of one file."""

    def __init__(self) -> None:
        self._odd = self._unordered = 0

    def add(self, key: object, n_before: int, *, is_new: bool = True) -> None:
        """Count a key that is put into a dict, or an item of a set.

        Args:
            n_before: The number of keys that the dict has.
            is_new: Whether the dict does not have this one.

        Raises:
            DamagedFileError: If there are too many that could collide.
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
