"""Decide which URLs are opened, and cut out their secret parts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote, unquote_plus, urlsplit

from gpt_pretrain.errors import UserError

# fsspec knows many more. Some of them run programs or read a second address from the first one's content.
SCHEMES = ("file", "https", "http", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf")
WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/].*")
SECRET = "***"  # stands for a part that has been cut out

# Values in a query that cannot be secret. They stay, so that the URL can still be opened.
_HARMLESS_VALUES = ("", "true", "false", "yes", "no", "0", "1")
_URL_START = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Without a limit on the scheme, a long word would be searched once for each of its letters.
# In the values of a sweep, a comma and the next URL follow. Hydra writes values with a backslash before special characters.
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{0,30}\\*:\\*//"
_REST = rf"(?:(?!,{_SCHEME})(?:\\[ \t'\"]|[^\s'\"<>|]))+"
_URL_IN_TEXT = re.compile(_SCHEME + _REST)
_ESCAPED = re.compile(r"\\+(?=[\\()\[\]{}:=, \t])")
_QUERY_IN_TEXT = re.compile(rf"(?<=[\w/.])\?[\w.~%-]+={_REST}")
# In URLs with these schemes, the part before the @ is a container or a model, and not a user.
_WITHOUT_USER = ("az://", "abfs://", "abfss://", "hf://", "file://")
_CLOSING = ".,:;)]}"  # characters that may follow a URL in a sentence
_SHORTEST_SECRET = 4  # characters; a shorter text also occurs in ordinary words


def is_url(path: str) -> bool:
    """Return whether a path is a URL."""
    return "://" in path


def wsl_path(path: str) -> str | None:
    """Return the path of a Windows file in the Windows Subsystem for Linux, or None if the path is not a Windows path."""
    if WINDOWS_PATH.fullmatch(path) is None:
        return None
    return f"/mnt/{path[0].lower()}/{path[2:].strip('/').replace(chr(92), '/').lstrip('/')}"


def check_url(url: str, *, setting: str, schemes: Iterable[str] | None = None) -> None:
    """Check that a URL is whole, has one of the schemes that are opened, and does not lead through another file system.

    Args:
        setting: The setting that it is the value of, for the message.
        schemes: The schemes that are opened; None allows SCHEMES.

    Raises:
        UserError: If it must not be opened.
    """
    scheme, schemes = url.partition("://")[0], list(SCHEMES if schemes is None else schemes)
    allowed = ", ".join(f"{name}://" for name in schemes)
    if "::" in url:
        raise UserError(
            f"{setting}={without_secrets(url)}: a URL with :: leads through another file system, which is not supported. "
            f"Give the URL of the data itself; it may begin with {allowed}."
        )
    if is_cut(url):
        raise UserError(
            f"{setting}={url}: {SECRET} stands for a password or a signature, which a run does not record. "
            f"Type the whole URL again: {setting}=URL"
        )
    if not is_url(url):
        raise UserError(f"{setting}={url} is not a URL, which begins like {allowed}. A file on this machine: data.path={url}")
    if scheme not in schemes:
        raise UserError(
            f"{setting}={without_secrets(url)}: URLs that begin with {scheme}:// are not opened. Allowed are {allowed}. "
            "Copy the data to a local disk, or to a server with one of these."
        )
    try:
        _ = urlsplit(url).port if scheme in ("http", "https") else None
    except ValueError as error:
        reason = hide_secrets(str(error), known=secret_parts(url))
        raise UserError(f"{setting}={without_secrets(url)} cannot be read as a URL ({reason}). Check it.") from None


def without_secrets(url: str) -> str:
    """Return a URL with *** in place of user and password, and of each value of the query and the fragment.

    Anything that does not begin like a URL stays as it is.
    """
    start = _URL_START.match(url)
    if start is None:
        return url
    user, rest = _split_user(start[0], url[start.end() :])
    address, hash_sign, fragment = rest.partition("#")
    address, question_mark, query = address.partition("?")
    cut_user = f"{SECRET}@" if user is not None else ""
    return f"{start[0]}{cut_user}{address}{question_mark}{_cut_values(query)}{hash_sign}{_cut_values(fragment)}"


def is_cut(value: str) -> bool:
    """Return whether a URL is one from which `without_secrets` has cut a part."""
    return SECRET in value and _URL_START.match(value) is not None and without_secrets(value) == value


def hide_secrets(text: str, *, known: Iterable[str] = ()) -> str:
    """Return a message with *** in place of the secrets of the URLs in it.

    Args:
        known: More secrets, such as those of `secret_parts`, which a message may show outside of their URL.
    """

    def cut(match: re.Match[str]) -> str:
        found = match[0].rstrip(_CLOSING)
        plain = _ESCAPED.sub("", found)
        shown = without_secrets(plain)
        return (found if shown == plain else shown) + match[0][len(found) :]

    def cut_query(match: re.Match[str]) -> str:
        found = match[0].rstrip(_CLOSING)
        return "?" + _cut_values(found[1:]) + match[0][len(found) :]

    text = _QUERY_IN_TEXT.sub(cut_query, _URL_IN_TEXT.sub(cut, text))
    for secret in sorted(known, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, SECRET)
    return text


def secret_parts(url: str) -> list[str]:
    """Return the texts that `without_secrets` cuts out of a URL, both as written and decoded."""
    start = _URL_START.match(url)
    if start is None:
        return []
    user, rest = _split_user(start[0], url[start.end() :])
    parts = [] if user is None else [user, *user.partition(":")[2:]]
    address, _, fragment = rest.partition("#")
    for values in (address.partition("?")[2], fragment):
        fields = (field.rpartition("=")[2] for field in re.split("[&;]", values))
        parts += [value for value in fields if value.lower() not in _HARMLESS_VALUES]
    return [form for part in parts if part != SECRET for form in {part, unquote(part), unquote_plus(part)}]


def _split_user(scheme: str, rest: str) -> tuple[str | None, str]:
    """Split what follows `://` at the user's name and password, if there are any."""
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if scheme in _WITHOUT_USER and ":" not in authority:
        return None, rest
    if "@" in authority:
        user, _, _ = authority.rpartition("@")
    elif "@" in rest and re.fullmatch(r"[^:]*(:\d*)?", authority.rpartition("]")[2]) is None:
        # The text after the last colon is not a port, so it belongs to a password with an unescaped / or ?.
        user, _, _ = rest.rpartition("@")
    else:
        return None, rest
    return user, rest[len(user) + 1 :]


def _cut_values(query: str) -> str:
    """Replace the values of a query or a fragment."""

    def cut(match: re.Match[str]) -> str:
        name, equals, value = match[0].rpartition("=")
        return f"{name}{equals}{value if value.lower() in _HARMLESS_VALUES else SECRET}"

    return re.sub("[^&;]+", cut, query)
