"""Read YAML that anybody may have written, as plain data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from gpt_pretrain.errors import first_line
from gpt_pretrain.system.nested_values import MAX_DEPTH, check_written_length, expand_aliases
from gpt_pretrain.system.number_keys import MAX_ODD_KEYS
from gpt_pretrain.system.reading import DamagedFileError, read_bytes
from gpt_pretrain.system.shown_values import describe_value

# YAML takes 50 times as long to parse as JSON. The settings of a run have about 3,000 bytes.
MAX_YAML_BYTES = 500_000
# A plain YAML number. Python refuses decimal numbers of more than 4,300 digits, but not those in hexadecimal or base 60.
LONG_NUMBER = re.compile(r"[-+0-9_:.xXoOa-fA-F]{1000,}")
NUMBER_START = tuple("-+.0123456789")  # of a plain number or date
MERGE_TAG = "tag:yaml.org,2002:merge"


def read_yaml(
    path: Path, *, max_bytes: int = MAX_YAML_BYTES, within: Path | None = None, as_written: bool = False
) -> dict[str, Any]:
    """Read a YAML file that holds a mapping as plain data. `${...}` stays a text, and aliases become copies.

    Args:
        as_written: Keep numbers, dates and words such as `no` as texts.

    Raises:
        OSError: If `open_regular` refuses the file.
        DamagedFileError: If the file is too large, even after aliases are copied, or is not a mapping of plain values.
    """
    return parse_yaml(read_bytes(path, max_bytes=max_bytes, within=within), as_written=as_written)


def parse_yaml(content: bytes | str, *, as_written: bool = False) -> dict[str, Any]:
    """Parse a YAML mapping as plain data, as `read_yaml` does.

    Raises:
        DamagedFileError: As `read_yaml` does.
    """
    parsed = parse_yaml_value(content, as_written=as_written)
    if not isinstance(parsed, dict):
        raise DamagedFileError(f"it holds {describe_value(parsed)}, not a mapping")
    return {str(name): value for name, value in parsed.items()}


def parse_yaml_value(content: bytes | str, *, as_written: bool = False) -> Any:
    """Parse any YAML value as plain data, as `read_yaml` does.

    Raises:
        DamagedFileError: As `read_yaml` does.
    """
    kind = "BaseLoader" if as_written else "SafeLoader"
    loader = getattr(yaml, f"C{kind}", getattr(yaml, kind))
    try:
        _check_yaml_events(content, loader)
        parsed = expand_aliases(_construct_yaml(content, loader), max_values=len(content) + MAX_DEPTH)
    except DamagedFileError:
        raise
    # A tag such as !!bool or !!timestamp before a value of another type makes PyYAML (6.0) fail in several ways.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        raise DamagedFileError(f"it cannot be read as YAML ({first_line(error)})") from error
    check_written_length(parsed, len(content))
    return parsed


def _check_yaml_events(content: bytes | str, loader: Any) -> None:
    """Check the depth, the numbers and the keys of a file by the parser's events. Events need no deep stack and convert nothing.

    At some 10,000 levels, the stack of PyYAML's composer would overflow, which ends the process. Merge keys are refused, since
    they copy mappings before their size can be checked.
    """
    n_odd, open_mappings = 0, list[int | None]()  # of each open collection the names and values so far; None for a sequence
    for event in yaml.parse(content, Loader=loader):
        if isinstance(event, yaml.NodeEvent) and open_mappings and (n_nodes := open_mappings[-1]) is not None:
            open_mappings[-1] = n_nodes + 1
            n_odd += n_nodes % 2 == 0 and not _is_text(event)
        if isinstance(event, yaml.CollectionStartEvent):
            open_mappings.append(0 if isinstance(event, yaml.MappingStartEvent) else None)
        elif isinstance(event, yaml.CollectionEndEvent):
            open_mappings.pop()
        elif isinstance(event, yaml.ScalarEvent):
            if event.tag == MERGE_TAG or (event.value == "<<" and event.implicit[0]):
                raise DamagedFileError("it holds the key <<, which merges mappings; write out what is merged")
            if LONG_NUMBER.fullmatch(event.value):
                raise DamagedFileError("it holds a number of more than a thousand digits")
        if len(open_mappings) > MAX_DEPTH:
            raise DamagedFileError(f"it is nested more than {MAX_DEPTH} levels deep")
        if n_odd > MAX_ODD_KEYS:
            raise DamagedFileError(f"more than {MAX_ODD_KEYS:,} names in its mappings are no texts")


def _is_text(event: yaml.NodeEvent) -> bool:
    """Return whether a name in a mapping is a text, not a number, date, alias or collection. Nobody can choose a text's hash."""
    if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
        return False
    return not (event.implicit[0] and event.value.startswith(NUMBER_START))


def _construct_yaml(content: bytes | str, loader: Any) -> Any:
    opened = loader(content)
    try:
        return opened.get_single_data()
    finally:
        opened.dispose()
