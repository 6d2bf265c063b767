"""The bodies of requests: those of OpenAI's completions, and those of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WrapValidator, model_validator

from gpt_pretrain.generation.config import (
    LEAST_PENALTY,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    MOST_PENALTY,
    SamplerConfig,
)

MAX_CHOICES, MAX_SHOWN_LOGPROBS, MAX_TEMPERATURE = 16, 20, 100.0
MAX_PROMPTS = 10_000  # prompts of one body; the server's other limits are lower
MAX_FIELDS = 100  # fields of an object; OpenAI's completions have 17
DEFAULT_TOKENS = 16  # OpenAI's default of max_tokens
NO_PENALTY = "must be 0: this server has repetition_penalty instead"
ONE_PROMPT = "must be a text or a list of token ids"

# Messages for pydantic's kinds of errors, with placeholders for their values.
FIELD_RULES = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be a JSON object",
    "extra_forbidden": "there is no such field",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "int_type": "must be a whole number",
    "json_invalid": "must be JSON",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "model_attributes_type": "must be a JSON object, sent with the header Content-Type: application/json",
    "model_type": "must be a JSON object",
    "string_type": "must be a text",
    "string_unicode": "must be a text",
    "too_long": "must have at most {max_length} items",
    "value_error": "{error}",
}


def describe_error(error: Mapping[str, Any]) -> str:
    """Return a message about the error in a field of a body."""
    rule = FIELD_RULES.get(error["type"])
    return str(error["msg"]) if rule is None else rule.format(**error.get("ctx", {}))


def _only(rule: str) -> WrapValidator:
    """Return a validator for a field of several types. It reports one rule, in place of an error for each type."""

    def check(value: Any, validated: Callable[[Any], Any]) -> Any:
        try:
            return validated(value)
        except ValidationError as error:
            own = [describe_error(one) for one in error.errors(include_input=False) if one["type"] == "value_error"]
            raise ValueError(own[0] if own else rule) from error

    return WrapValidator(check)


def _whole_characters(text: str) -> str:
    """Refuse half a surrogate pair. JSON can express one, but no text can contain it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("it has half a surrogate pair") from error
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
Stop = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
# Without fail_fast, each wrong item of a list would become an error of its own: a body of 1 MB took 28 s and 1.4 GB.
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31, strict=True)]], Field(fail_fast=True)]


class StrictBody(BaseModel):
    """An object of a body. A field that is not listed is refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_number_of_fields(cls, fields: Any) -> Any:
        """Refuse an object with very many fields, since each unknown one would become an error of its own."""
        if isinstance(fields, dict) and len(fields) > MAX_FIELDS:
            raise ValueError(f"it has {len(fields):,} fields, more than the limit of {MAX_FIELDS}")
        return fields


class SampledBody(StrictBody):
    """The fields that choose a model and the way of sampling."""

    model: Text
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = DEFAULT_TOKENS
    temperature: Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None  # 0 and -1 keep all tokens, as in vLLM
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=LEAST_PENALTY, le=MOST_PENALTY)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[
        Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None,
        _only(f"must be a text of 1 to {MAX_STOP_LENGTH:,} characters, or a list of at most {MAX_STOPS} of them"),
    ] = None

    def sampler(self) -> SamplerConfig:
        """Return the sampler that the fields describe."""
        return SamplerConfig(
            DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens,
            1.0 if self.temperature is None else self.temperature,
            self.top_k if self.top_k is not None and self.top_k > 0 else None,
            self.top_p if self.top_p is not None and self.top_p < 1 else None,
            self.min_p,
            1.0 if self.repetition_penalty is None else self.repetition_penalty,
        )

    def stops(self) -> tuple[str, ...]:
        """Return the stop strings."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class StreamOptions(StrictBody):
    """OpenAI's `stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionBody(SampledBody):
    """The body of POST /v1/completions. A field that would change the text in an unsupported way is refused."""

    prompt: Annotated[
        Text
        | TokenIds
        | Annotated[list[Text], Field(max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[TokenIds], Field(max_length=MAX_PROMPTS, fail_fast=True)],
        _only(f"{ONE_PROMPT}, or a list of at most {MAX_PROMPTS:,} texts or of such lists"),
    ]
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_SHOWN_LOGPROBS)] | None = None
    echo: bool | None = False
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    presence_penalty: Annotated[Annotated[float, Field(ge=0, le=0)] | None, _only(NO_PENALTY)] = 0.0
    frequency_penalty: Annotated[Annotated[float, Field(ge=0, le=0)] | None, _only(NO_PENALTY)] = 0.0
    logit_bias: Annotated[Annotated[dict[str, Any], Field(max_length=0)] | None, _only("must be empty: this server has none")] = (
        None
    )
    suffix: Literal[""] | None = None
    user: Text | None = None

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, each as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[one for one in self.prompt if isinstance(one, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]


class TokensBody(StrictBody):
    """The body of POST /api/tokens."""

    model: Text
    text: Text


class ContinueBody(SampledBody):
    """The body of POST /api/continue. To continue with another token, send the token ids before it, followed by its own."""

    prompt: Annotated[Text | TokenIds, _only(ONE_PROMPT)]
    alternatives: Annotated[int, Field(ge=0, le=MAX_SHOWN_LOGPROBS)] = 10
    echo: bool = True
