"""The commands that convert texts from old encodings to UTF-8."""

from __future__ import annotations

from gpt_pretrain.system.shell import quote_word

# iconv's names, if they are not Python's names in capital letters; None if iconv lacks the encoding.
ICONV: dict[str, str | None] = {
    **{"latin_1": "ISO-8859-1", "mac_roman": "MACINTOSH", "mac_latin2": "MAC-CENTRALEUROPE", "mac_iceland": "MAC-IS"},
    **{"kz1048": "RK1048", "ptcp154": "PT154", "euc_jp": "EUC-JP", "euc_kr": "EUC-KR", "koi8_r": "KOI8-R", "koi8_u": "KOI8-U"},
    **{"big5hkscs": "BIG5-HKSCS", "euc_jis_2004": "EUC-JISX0213", "euc_jisx0213": "EUC-JISX0213"},
    **{"shift_jis_2004": "SHIFT_JISX0213", "shift_jisx0213": "SHIFT_JISX0213"},
    **{"tis_620": "TIS-620", "hp_roman8": "HP-ROMAN8", "mac_cyrillic": "MAC-CYRILLIC"},
    **dict.fromkeys(("mac_greek", "mac_turkish", "koi8_t", "cp720", "hz", "cp864")),
}
# Encodings of the shapes of letters within words. Unicode's form NFKC turns these shapes into letters.
OF_SHAPES = ("cp864",)


def convert_command(path: str, encoding: str) -> str:
    """Return the command that converts a file to UTF-8.

    Args:
        encoding: Python's name of the encoding.
    """
    return conversion(encoding).replace("{path}", quote_path(path))


def conversion(encoding: str) -> str:
    """Return the command that converts a file {path} to UTF-8."""
    if (name := iconv_name(encoding)) is not None:
        return f"iconv -f {name} -t UTF-8 {{path}} > new.txt"
    read = f"open(sys.argv[1], encoding='{encoding}', newline='').read()"
    if encoding in OF_SHAPES:
        read = f"unicodedata.normalize('NFKC', {read})"
    modules = "sys, unicodedata" if encoding in OF_SHAPES else "sys"
    return f'python -c "import {modules}; sys.stdout.buffer.write({read}.encode())" {{path}} > new.txt'


def iconv_name(encoding: str) -> str | None:
    """Convert Python's name of an encoding to iconv's name; None if iconv does not know it."""
    if encoding in ICONV:
        return ICONV[encoding]
    return encoding.upper().replace("ISO8859_", "ISO-8859-").replace("ISO2022_", "ISO-2022-").replace("_", "-")


def quote_path(path: str) -> str:
    """Quote a path for a command, even one that begins like an option."""
    return quote_word(f"./{path}" if path.startswith("-") else path)
