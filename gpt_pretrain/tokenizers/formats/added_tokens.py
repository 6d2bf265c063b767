"""Read the tokens that the files beside a vocabulary add to it, and the rules for finding them in a text.

Source: transformers' `PreTrainedTokenizerBase._from_pretrained` and `PreTrainedTokenizerFast.__init__`. They decide which file
counts if several name the same token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

from gpt_pretrain.system.json_files import parse_json
from gpt_pretrain.tokenizers.formats.definition import TOKEN_FLAGS

MAX_DIGITS = 9  # digits of an id
# In transformers' order of adding the special tokens that the vocabulary lacks.
SPECIAL_FIELDS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
NO_FLAGS = dict.fromkeys(TOKEN_FLAGS, False)


@dataclass(frozen=True)
class NamedToken:
    """A token in a file beside a vocabulary.

    Args:
        content: Its text.
        token_id: Its id; None if it follows from the vocabulary, or from the order of such tokens.
        flags: The rules for finding it in a text, as in a tokenizer.json.
        decides: Whether these flags take precedence over other ones in the tokenizer.json.
    """

    content: str
    token_id: int | None = None
    flags: dict[str, bool] = field(default_factory=lambda: dict(NO_FLAGS))
    decides: bool = False


@dataclass(frozen=True)
class FilesBeside:
    """The content of the files beside a vocabulary.

    Args:
        config: The settings of tokenizer_config.json and special_tokens_map.json.
        tokens: The tokens that the files add, in the order of their addition.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    tokens: tuple[NamedToken, ...] = ()

    @property
    def end_of_text(self) -> str | None:
        """The token that ends a text, if the files name it."""
        return token_text(self.config.get("eos_token"))


def read_beside(config: bytes | None, special_tokens: bytes | None, added_tokens: bytes | None) -> FilesBeside:
    """Parse the files beside a vocabulary.

    Args:
        config: The content of tokenizer_config.json; None if there is no such file.
        special_tokens: The content of special_tokens_map.json, or None.
        added_tokens: The content of added_tokens.json, or None.

    Raises:
        DamagedFileError: If one of them is damaged.
    """
    settings, listed = _parse(config), list[NamedToken]()
    if not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens", None)
    if isinstance(table := settings.get("added_tokens_decoder"), dict):  # It fully describes the added tokens.
        listed += _tokens_of_table(table)
        specials = list(_special_tokens(settings))
    else:
        settings |= _special_tokens_of_map(settings, _parse(special_tokens))
        specials = list(_special_tokens(settings))
        named = {token.content for token in specials}
        for content, token_id in _parse(added_tokens).items():
            if content and type(token_id) is int:
                listed.append(NamedToken(content, token_id, NO_FLAGS | {"normalized": content not in named}))
    tokens: dict[str, NamedToken] = {}
    for token in [*listed, *specials]:
        tokens.setdefault(token.content, token)
    return FilesBeside(settings, tuple(tokens.values()))


def token_text(token: Any) -> str | None:
    """Return the text of a special token. Configurations write it as a string or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _parse(content: bytes | None) -> dict[str, Any]:
    return {} if content is None else {key: value for key, value in parse_json(content).items() if value is not None}


def _tokens_of_table(table: Mapping[str, Any]) -> Iterator[NamedToken]:
    """Yield the tokens of an added_tokens_decoder in the order of their ids, which are its keys."""
    # A dict with these numbers as keys could take quadratic time.
    numbered = [(int(key), value) for key, value in table.items() if key.isdecimal() and len(key) <= MAX_DIGITS]
    for token_id, value in sorted(numbered, key=itemgetter(0)):
        if isinstance(value, dict) and (token := _named(value)) is not None:
            yield replace(token, token_id=token_id, decides=True)


def _special_tokens_of_map(settings: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a special_tokens_map.json. Every token in it is special."""
    marked = {key: _special(value) for key, value in table.items()}
    before, more = settings.get("extra_special_tokens"), table.get("extra_special_tokens")
    if isinstance(more, list):
        marked["extra_special_tokens"] = [*(before if isinstance(before, list) else []), *map(_special, more)]
    return marked


def _special(value: Any) -> Any:
    return value | {"special": True} if isinstance(value, dict) and "content" in value else value


def _special_tokens(settings: Mapping[str, Any]) -> Iterator[NamedToken]:
    """Yield the special tokens in settings, in the order of adding them to a vocabulary that lacks them."""
    extra = settings.get("extra_special_tokens")
    of_models = [value for key, value in settings.items() if key.endswith("_token") and key not in SPECIAL_FIELDS]
    of_models.sort(key=lambda value: isinstance(value, str))
    more = [*of_models, *(extra.values() if isinstance(extra, dict) else ())]
    lists = [extra if isinstance(extra, list) and extra else settings.get("additional_special_tokens")]
    values = [*(settings.get(key) for key in SPECIAL_FIELDS), *more]
    for value in [*values, *(token for tokens in lists if isinstance(tokens, list) for token in tokens)]:
        if (token := _named(value)) is not None:
            yield token


def _named(value: Any) -> NamedToken | None:
    """Return a token written as a string, or as an object with its flags; None if the value is neither."""
    if not (content := token_text(value)):
        return None
    if not isinstance(value, dict):
        return NamedToken(content)
    # As in the library, tokens that are not special are searched in the normalized text by default.
    given = {"normalized": not value.get("special", False)} | value
    return NamedToken(content, flags={name: bool(given.get(name, False)) for name in TOKEN_FLAGS})
