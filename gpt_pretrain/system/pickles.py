"""Read pickles that anybody may have written. Nothing is imported, called or built while a pickle is read."""

from __future__ import annotations

from typing import IO, Any, cast

from gpt_pretrain.system.nested_values import check_values, check_written_length
from gpt_pretrain.system.pickle_limits import MAX_TEXT_LINE
from gpt_pretrain.system.pickle_machine import StackMachine
from gpt_pretrain.system.pickle_rules import PickleRules
from gpt_pretrain.system.reading import DamagedFileError

PLAIN = PickleRules(calls={})


def read_pickle(stream: IO[bytes], rules: PickleRules = PLAIN, *, size: int) -> Any:
    """Read the pickle that begins at the position of a stream.

    Args:
        rules: What it may hold besides plain values, lists, tuples and dicts.
        size: Bytes of the stream. A length in the pickle must not lead beyond them, and the result must not have many more
            values, even if each shared value counts once for each reference.

    Raises:
        RefusedNameError: If the pickle would import something that the rules do not allow.
        DamagedFileError: If it is no pickle, holds something else than plain data, or makes too much for its size.
    """
    try:
        found = StackMachine(rules, size=size).run(cast(IO[bytes], _BoundedStream(stream, size)))
    except DamagedFileError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, EOFError) as error:
        reason = str(error)[:100] if type(error) is ValueError else "it is damaged"
        raise DamagedFileError(f"it cannot be read as a pickle ({reason})") from error
    check_values(found, max_values=size + 1000)
    check_written_length(found, size, with_groups=False)
    return found


class _BoundedStream:
    """A stream that allocates no more for a length in a file than the file has left."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._size = stream, size
        self.tell = stream.tell

    def read(self, count: int) -> bytes:
        if count > 16 and count > self._size - self.tell():
            raise ValueError("a length leads beyond the end of the file")
        return self._stream.read(count)

    def readline(self) -> bytes:
        return self._stream.readline(MAX_TEXT_LINE)
