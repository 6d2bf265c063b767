"""Change real files as an attacker or a failing disk would: blindly, and with knowledge of their formats."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

from gpt_pretrain.system.nested_values import _measure

Change = Callable[[bytes, Random], bytes]

NUMBERS = [
    "0",
    "-1",
    "1",
    "9" * 19,
    "9" * 400,
    "9" * 5000,
    "1e308",
    "1e999",
    "-1e308",
    "1e-320",
    "NaN",
    "Infinity",
    "2.5",
    "00",
    "²",
]
INTEGERS = [0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 0x30000000, 3_000_000_000]
REPEATED = ":\\?@]{$'%&="  # characters that a careless pattern searches again from each of a long row
FUNCTIONS = [
    b"builtins\nbytearray\n",
    b"builtins\nbytes\n",
    b"os\nsystem\n",
    b"torch\nFloatStorage\n",
    b"torch._utils\n_rebuild_tensor_v2\n",
]


def change_bytes(data: bytes, random: Random) -> bytes:
    """Flip bits, cut, repeat, move or overwrite some bytes, without any knowledge of the format."""
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 3, 8])):
        start = random.randrange(len(changed) + 1)
        length = min(random.choice([1, 2, 4, 8, 16, 100, 1000, 100_000]), len(changed) - start)
        kind = random.randrange(9)
        if kind == 0 and length:
            changed[start] ^= 1 << random.randrange(8)
        elif kind == 1:
            del changed[start:]
        elif kind == 2:
            del changed[start : start + length]
        elif kind == 3:
            changed[start:start] = changed[start : start + length] * random.choice([1, 2, 50])
        elif kind == 4:
            other = random.randrange(len(changed) + 1)
            changed[start : start + length] = changed[other : other + length]
        elif kind == 5:
            changed[start : start + length] = bytes([random.choice([0, 255, 10, 32, random.randrange(256)])]) * length
        elif kind == 6:
            width = random.choice([2, 4, 8])
            number = random.choice(INTEGERS) % (1 << 8 * width)
            changed[start : start + width] = number.to_bytes(width, random.choice(["little", "big"]))
        elif kind == 7:
            changed[start : start + length] = random.randbytes(length)
        else:
            changed[start:start] = random.choice([b"[", b"{", b'"', b"(", b"\\", b",", b"\n", b"\xff", b"\xf0"]) * random.choice(
                [1, 3, 3000]
            )
    return bytes(changed)


def change_text(data: bytes, random: Random) -> bytes:
    """Replace numbers by extremes, and remove, repeat, exchange or lengthen lines."""
    text = data.decode("utf-8", errors="replace")
    kind = random.randrange(6)
    numbers = [match.span() for match in re.finditer(r"-?\d+(\.\d+)?(e-?\d+)?", text)]
    lines = text.splitlines(keepends=True)
    if kind < 3 and numbers:
        for start, end in sorted(random.sample(numbers, min(len(numbers), random.choice([1, 1, 3]))), reverse=True):
            text = text[:start] + random.choice(NUMBERS) + text[end:]
        return text.encode()
    if lines and kind == 3:
        del lines[random.randrange(len(lines))]
    elif lines and kind == 4:
        index = random.randrange(len(lines))
        lines[index:index] = [lines[random.randrange(len(lines))]] * random.choice([1, 10, 3000])
    elif lines:
        index = random.randrange(len(lines))
        extra = random.choice(
            [
                "\0",
                "\x1b]0;x\x07",
                "\r",
                "\ud800",
                "é" * 3000,
                "," * 3000,
                "x" * 300_000,
                ": *a",
                "&a ",
                "${oc.env:HOME}",
                "!!python/name:os.system ",
                random.choice(["", "http://"]) + random.choice(REPEATED) * 100_000 + "]/@",
            ]
        )
        column = random.randrange(len(lines[index]) + 1)
        lines[index] = lines[index][:column] + extra + lines[index][column:]
    return "".join(lines).encode("utf-8", errors="surrogatepass")


def change_json(data: bytes, random: Random) -> bytes:
    """Replace, remove, rename or multiply some parts of a JSON value, or of one line of several."""
    if len(data) > 1_000_000:  # of an earlier change
        return change_text(data, random)
    lines = data.splitlines()
    index = random.randrange(len(lines)) if lines else 0
    try:
        try:
            value, whole = json.loads(data), True
        except ValueError:
            value, whole = json.loads(lines[index]), False
    except (ValueError, RecursionError, IndexError):
        return change_text(data, random)
    for _ in range(random.choice([1, 1, 2, 5])):
        changed_value = _change_value(value, random)
        if _measure(changed_value, {}, -1000)[0] < 1_000_000:  # repeated parts of repeated parts would be endless
            value = changed_value
    try:
        changed = json.dumps(value).encode()
    except (ValueError, RecursionError):
        return change_text(data, random)
    return changed if whole else b"\n".join([*lines[:index], changed, *lines[index + 1 :]]) + b"\n"


def change_yaml(data: bytes, random: Random) -> bytes:
    """Add aliases of aliases, or change the text."""
    if random.random() < 0.2:
        parts = random.choice([2, 10, 40])
        bomb = f"a0: &a0 [{','.join('x' * parts)}]\n" + "".join(
            f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * parts)}]\n" for n in range(1, random.choice([3, 9, 30]))
        )
        return random.choice([bomb.encode() + data, data + bomb.encode(), b"a: &a {b: *a}\n", b"? [1]\n: 2\n" + data])
    return change_text(data, random)


MAX_OPCODES = 100_000


def change_pickle(data: bytes, random: Random) -> bytes:
    """Change single opcodes, or insert some that would call a function, share a list or need a large memo."""
    if random.random() < 0.2:
        return change_bytes(data, random)
    try:
        found = [(position, opcode.name) for opcode, _, position in itertools.islice(pickletools.genops(data), MAX_OPCODES)]
    except Exception:  # an earlier change left no pickle
        return change_bytes(data, random)
    if len(found) == MAX_OPCODES:  # of an earlier change, which has made lists of lists of opcodes
        return change_bytes(data, random)
    starts = [position for position, _ in found] + [len(data)]
    parts = [data[start:end] for start, end in itertools.pairwise(starts)]
    for _ in range(random.choice([1, 1, 2, 4])):
        index = random.randrange(len(parts))
        kind = random.randrange(8)
        if kind == 0:
            del parts[index : index + random.choice([1, 1, 5])]
        elif kind == 1:
            parts[index:index] = [parts[index]] * random.choice([1, 3, 5000])
        elif kind == 2:
            other = random.randrange(len(parts))
            parts[index], parts[other] = parts[other], parts[index]
        elif kind == 3:
            number = random.choice(INTEGERS)
            parts[index] = random.choice(
                [b"J" + struct.pack("<I", number % 2**32), b"\x8a\x09" + number.to_bytes(9, "little"), b"K\x01", b"N"]
            )
        elif kind == 4:
            parts.insert(index, random.choice([b"r", b"j"]) + struct.pack("<I", random.choice(INTEGERS) % 2**32))
        elif kind == 5:
            parts.insert(
                index, b"c" + random.choice(FUNCTIONS) + b"J" + struct.pack("<I", random.choice(INTEGERS) % 2**31) + b"\x85R"
            )
        elif kind == 6:
            parts.insert(index, b"]q\xf0" + b"0](h\xf0h\xf0eq\xf0" * random.choice([2, 20, 70]))
        else:
            parts.insert(
                index,
                random.choice([b"(", b"]", b"}", b"0", b"2", b")", b"u", b"e", b"t", b"R", b"b", b"Q"])
                * random.choice([1, 3, 20_000]),
            )
        if not parts:
            break
    return b"".join(parts)


def change_zip(data: bytes, random: Random) -> bytes:
    """Change the pickle or another part of an archive of torch.save, or the archive around them."""
    if random.random() < 0.25:
        return change_bytes(data, random)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:  # an earlier change left no archive
        return change_bytes(data, random)
    for index, (name, content) in enumerate(parts):
        if name.endswith("data.pkl") and random.random() < 0.85:
            parts[index] = name, change_pickle(content, random)
    kind = random.randrange(12)
    index = random.randrange(len(parts))
    if kind == 0:
        del parts[index]
    elif kind == 1:
        parts.append(parts[index])
    elif kind == 2:
        parts[index] = random.choice(["../x", "data.pkl", "x/data.pkl", " ", "x" * 300]), parts[index][1]
    elif kind == 3:
        parts[index] = parts[index][0], change_bytes(parts[index][1], random)
    elif kind == 4:
        parts[index] = parts[index][0], b"0" * 3_000_000
    target = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if kind == 5 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w") as archive:
        warnings.simplefilter("ignore")  # about duplicate names
        for name, content in parts:
            archive.writestr(zipfile.ZipInfo(name), content, method)  # a name alone would bring the present time
    return target.getvalue()


def change_gzip(data: bytes, random: Random) -> bytes:
    """Change the content of an archive of JSON lines, or the archive."""
    if random.random() < 0.5:
        return change_bytes(data, random)
    content = gzip.decompress(data)
    return gzip.compress(random.choice([change_bytes, change_json])(content, random), compresslevel=1, mtime=0)


def _change_value(value: Any, random: Random) -> Any:
    """Return a JSON value with one part changed, somewhere in it."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        kind = random.random()
        if kind < 0.1:
            return {name: part for name, part in value.items() if name != key}
        if kind < 0.15:
            return {
                (random.choice(["", "x" * 3000, "../x", "\x1b[2J"]) if name == key else name): part
                for name, part in value.items()
            }
        return value | {key: _change_value(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.85:
        index = random.randrange(len(value))
        if random.random() < 0.1:
            return value[:index] + [value[index]] * random.choice([0, 2, 1000]) + value[index:]
        return [*value[:index], _change_value(value[index], random), *value[index + 1 :]]
    return _strange_value(random)


def _strange_value(random: Random) -> Any:
    deep: Any = 0
    for _ in range(random.choice([3, 90, 150, 700])):
        deep = [deep] if random.random() < 0.5 else {"a": deep}
    plain = [
        None,
        True,
        False,
        "",
        [],
        {},
        [[]],
        {"": ""},
        0,
        -1,
        2.5,
        1e308,
        -1e308,
        float("inf"),
        float("nan"),
        10**99,
        10**400,
    ]
    texts = [
        "x" * 100_000,
        "../../x",
        "/etc/passwd",
        "/dev/zero",
        "\x1b]0;x\x07\n",
        "\ud800",
        "${oc.env:HOME}",
        "1e999",
        "9" * 5000,
        random.choice(["", "http://"]) + random.choice(REPEATED) * 100_000 + "]/@",
    ]
    large = [deep, deep, list(range(3000)), {str(n): n for n in range(3000)}, [{}] * 3000]
    return random.choice([*plain, *texts, *large])
