"""Find the tokenizer of a run, and check that it can do what the settings need."""

from __future__ import annotations

import logging
from collections.abc import Set
from contextlib import suppress

from gpt_pretrain.config.custom_parts import CUSTOM
from gpt_pretrain.config.schema import USUAL_BATCH, DataSettings, TrainSettings
from gpt_pretrain.data.sources import find_shard_tokenizer
from gpt_pretrain.data.token_stream import TokenSplit
from gpt_pretrain.data.trained_tokenizer import first_characters, trained_tokenizer, training_characters
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.tokenizers.base import Tokenizer, decode
from gpt_pretrain.tokenizers.bpe_training import AUTOMATIC_NAME, TOKENS_PER_ENTRY, TRAINED_NAME, VOCABULARY_SIZES
from gpt_pretrain.tokenizers.build import DEFAULT_NAME, build_tokenizer
from gpt_pretrain.tokenizers.fitting import fit_to_rows, with_end_of_text
from gpt_pretrain.tokenizers.saving import is_exportable
from gpt_pretrain.tokenizers.splitting import encode_prompt
from gpt_pretrain.tokenizers.unknown import unknown_prompt
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.start.starting_point import StartingPoint, names_tokenizer

ENOUGH_CHARACTERS = 100_000  # of a training set with its own vocabulary; with less text, GPT-2's knows more words
ENOUGH_IF_CUT = 20_000  # the same if GPT-2's vocabulary cuts the text into short tokens
SHORT_TOKENS = 2.0  # characters; a token of GPT-2 has about 4 in English, 2.3 in German and 1.3 in Russian
SAMPLE_CHARACTERS = 20_000  # characters to measure the length of tokens on
CHARACTERS_PER_TOKEN = 3  # rough value for a vocabulary that is trained on the text, in any language
STEP_TOKENS = 2048  # tokens of a step with Muon and a vocabulary that is trained on the text
MAX_START_TOKENS, MIN_START_CHARACTERS = 24, 4  # for a start_context taken from the text

log = logging.getLogger(__name__)


def find_tokenizer(settings: TrainSettings, start: StartingPoint, overridden: Set[str]) -> Tokenizer:
    """Build the tokenizer of a run.

    It is the first of these that exists: the checkpoint's or the weights', the typed one, the token shards', the default.

    Raises:
        UserError: If it cannot be built, or does not fit the weights.
    """
    is_typed, name = names_tokenizer(settings, overridden), settings.tokenizer.name
    tokenizer = start.tokenizer if start.tokenizer is not None and name == start.tokenizer.name else None
    if tokenizer is None and not is_typed and start.resume is None:
        tokenizer = find_shard_tokenizer(settings.data)
    if start.weights is not None and tokenizer is None:
        tokenizer = start.weights.build_tokenizer(name if is_typed else None)
    if tokenizer is None and name == AUTOMATIC_NAME:
        name = DEFAULT_NAME if start.architecture is not None else automatic_name(settings, overridden)
        if name == TRAINED_NAME and "tokenizer.vocab_size" not in overridden:
            log.info("The text gets a vocabulary of its own; tokenizer=%s uses GPT-2's instead", DEFAULT_NAME)
    if "tokenizer.vocab_size" in overridden and start.resume is None and name != TRAINED_NAME:
        size = settings.tokenizer.vocab_size
        raise UserError(f"tokenizer.vocab_size={size} is the size of a vocabulary that tokenizer=bpe trains. Add tokenizer=bpe.")
    if tokenizer is None and name == TRAINED_NAME and start.architecture is None:
        tokenizer = _train_tokenizer(settings)
        _enlarge_steps(settings)
    if tokenizer is None:
        tokenizer = build_tokenizer(name)
        tokenizer = with_end_of_text(tokenizer) if start.architecture is None else tokenizer
    if start.architecture is not None:
        tokenizer = fit_to_rows(
            tokenizer, start.architecture.vocab_size, origin=str(settings.resume or settings.init_from or "The checkpoint")
        )
    settings.tokenizer.name, settings.data.batch_size = tokenizer.name, settings.data.batch_windows
    return tokenizer


def may_train_vocabulary(settings: TrainSettings) -> bool:
    """Return whether the tokenizer may be one that is trained on the text."""
    name = settings.tokenizer.name
    return name == TRAINED_NAME or (name == AUTOMATIC_NAME and settings.model.kind == "modern")


def _train_tokenizer(settings: TrainSettings) -> Tokenizer:
    typed = settings.tokenizer.vocab_size
    with ranks.local_main_first():  # the first rank of each machine trains it
        settings.tokenizer.vocab_size = fitting_size(settings.data) if typed is None else typed
        tokenizer = trained_tokenizer(settings.data, vocab_size=settings.tokenizer.vocab_size)
    if typed is not None and tokenizer.vocab_size < typed:
        log.warning(
            "tokenizer.vocab_size=%d is more than this text has: its vocabulary has %s",
            typed,
            format_count(tokenizer.vocab_size, "token"),
        )
    return tokenizer


def automatic_name(settings: TrainSettings, overridden: Set[str]) -> str:
    """Return the name that tokenizer=auto stands for: bpe for the user's own text and a modern model, otherwise gpt2.

    Raises:
        UserError: If the text cannot be read.
    """
    if settings.model.kind != "modern" or not _is_own_text(settings, overridden):
        return DEFAULT_NAME
    if "tokenizer.vocab_size" in overridden:
        return TRAINED_NAME
    characters = training_characters(settings.data, most=ENOUGH_CHARACTERS)
    enough = characters >= ENOUGH_CHARACTERS or (characters >= ENOUGH_IF_CUT and _is_cut_by_default(settings.data))
    return TRAINED_NAME if enough else DEFAULT_NAME


def _is_cut_by_default(settings: DataSettings) -> bool:
    """Return True if GPT-2's vocabulary cuts the beginning of the text into short tokens. It does so with most scripts."""
    beginning = first_characters(settings, SAMPLE_CHARACTERS)
    return len(beginning) < SHORT_TOKENS * len(build_tokenizer(DEFAULT_NAME).encode(beginning))


def _is_own_text(settings: TrainSettings, overridden: Set[str]) -> bool:
    data = settings.data
    return data.name == "mixture" or (data.name not in ("shards", CUSTOM) and (data.path is not None or "data.url" in overridden))


def fitting_size(settings: DataSettings) -> int:
    """Return the size of a vocabulary for the text: the largest usual size with enough text for each token.

    Raises:
        UserError: If the settings name no text, or it cannot be read.
    """
    needed = {size: size * TOKENS_PER_ENTRY * CHARACTERS_PER_TOKEN for size in VOCABULARY_SIZES}
    characters = training_characters(settings, most=max(needed.values()))
    return max((size for size, least in needed.items() if characters >= least), default=min(needed))


def _enlarge_steps(settings: TrainSettings) -> None:
    """Enlarge the batch of a run with Muon, unless somebody chose it. A small vocabulary does not reduce Muon's work per step."""
    data, trainer = settings.data, settings.trainer
    is_chosen = data.batch_size is not None or trainer.accumulate_grad_batches > 1 or settings.budget is not None
    if settings.optimizer.name == "muon" and not is_chosen:
        devices = int(trainer.devices) * trainer.num_nodes
        data.batch_size = max(USUAL_BATCH, STEP_TOKENS // (settings.model.context_length * devices))


def tokenizer_problems(settings: TrainSettings, tokenizer: Tokenizer, overridden: Set[str]) -> list[str]:
    """List the requests of the settings that the tokenizer cannot fulfill."""
    problems = []
    if settings.export and not is_exportable(tokenizer):
        problems.append(f"export=true: transformers has no tokenizer like {tokenizer.name[:100]}. Leave out export=true.")
    if not settings.start_context:
        problems.append("start_context is empty, but every sample begins with it. Give at least one character.")
    prompts = {f"start_context={settings.start_context}": settings.start_context} if "start_context" in overridden else {}
    if settings.callbacks.grid is not None:
        prompts |= {f"callbacks.grid.prompts: {prompt}": prompt for prompt in settings.callbacks.grid.prompts}
    for setting, prompt in prompts.items():
        try:
            if prompt and not encode_prompt(prompt, tokenizer):
                problems.append(
                    f"{setting}: the tokenizer {tokenizer.name[:100]} has no token for it. Choose another text or tokenizer."
                )
        except UserError as error:
            problems.append(f"{setting}: {error}")
    return problems


def choose_start_context(settings: TrainSettings, tokenizer: Tokenizer, split: TokenSplit) -> None:
    """Use the first words of the training set as start_context if the tokenizer cannot encode the default one."""
    with suppress(UserError):
        if encode_prompt(settings.start_context, tokenizer) and unknown_prompt(settings.start_context, tokenizer) is None:
            return
    first = split.train.read(0, min(MAX_START_TOKENS, split.train.count)).tolist()
    text = decode(tokenizer, first).strip()
    settings.start_context = next((line for line in text.split("\n") if len(line) >= MIN_START_CHARACTERS), text)
    log.info(
        "Samples begin with the text's own first words, %r: the tokenizer cannot encode the default start_context",
        settings.start_context,
    )
