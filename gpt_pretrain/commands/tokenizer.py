"""Train a vocabulary on a corpus of text.

Usage: gpt-pretrain tokenizer INPUT [INPUT ...] out=FOLDER [vocab_size=4096] [setting=value ...]

  INPUT               a file, a directory or a "glob", as for gpt-pretrain prepare
  out                 folder for tokenizer.json and tokenizer_config.json; an earlier vocabulary there is replaced
  vocab_size          number of tokens, with the 256 bytes and the special tokens (default: 4096)
  pattern             how a text is divided into words: as by cl100k_base (default), or by gpt2
  special_tokens      names of further special tokens, separated by commas; <|endoftext|> is always the last token
  sample_bytes        size of the text to train on, such as 200MB (default: 50MB); of a larger corpus, a sample is taken
  val_fraction        share of the pieces to hold out for the report, selected by the hash of their text (default: 0.01)
  trial               settings of train.py, such as trial="model=tiny optimizer.lr=1e-3": train this model for a short time with
                      vocabularies of five sizes, and suggest the size with the lowest predicted bits per byte
  trial_minutes       time for these trainings, such as 30 or 1h (default: 10)
  dataset             read a dataset instead of files: a name or path for the package datasets, which streams it;
                      select a part with dataset_config=NAME and dataset_split=NAME (default: train)
  text_field          field of a JSON record, or column of a table, that contains the text (default: text)
  as_text             true: read tables, JSON and HTML as plain text
  document_separator  string between the documents of a text file (default: each file is one document)
  max_rejected        largest share of unusable records to leave out (default: 0.001)

The vocabulary is a byte-level byte-pair encoding. The same texts and settings always give the same bytes, in any order of the
files and on any number of cores. tokenizer=FOLDER uses it in train.py, generate.py and gpt-pretrain prepare, and transformers'
AutoTokenizer opens the folder.
"""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from gpt_pretrain.commands.command_line.arguments import parse_arguments
from gpt_pretrain.commands.command_line.unused_arguments import unused_arguments
from gpt_pretrain.config.command_schema import VocabularySettings
from gpt_pretrain.config.corpus_rules import vocabulary_problems
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.terminal import print_escaped

if TYPE_CHECKING:
    from gpt_pretrain.config.schema import TrainSettings
    from gpt_pretrain.prepare.vocabulary import VocabularySamples
    from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer

MAX_PASSES = 4  # Further passes over a text teach less than new text (Muennighoff et al. 2023, arXiv:2305.16264).


def tokenizer_command(arguments: list[str]) -> None:
    """Run `gpt-pretrain tokenizer`.

    Raises:
        UserError: If the settings are invalid or the corpus cannot be read.
    """
    settings = parse_arguments(arguments, VocabularySettings, usage=__doc__ or "", positional="inputs")
    from gpt_pretrain.prepare.vocabulary import train_vocabulary

    problems = vocabulary_problems(settings)
    trial = None
    if settings.trial is not None:
        trial, found = _trial_settings(settings.trial)
        problems += found
    if problems:
        raise UserError(problems)
    for sentence in unused_arguments(settings):
        print_escaped(sentence, file=sys.stderr)
    samples = train_vocabulary(settings)
    if trial is None:
        print_escaped('For a suggested size, from ten minutes of short trainings, add: trial="model=tiny"')
    else:
        _suggest_size(settings, trial, samples)


def _trial_settings(typed: str) -> tuple[TrainSettings | None, list[str]]:
    """Return the settings of train.py for the trials, or None, and their problems."""
    from gpt_pretrain.commands.notebook import load_settings
    from gpt_pretrain.config.custom_parts import TARGET
    from gpt_pretrain.config.overrides import full_form, override_key

    try:
        overrides = shlex.split(typed)
    except ValueError as error:
        return None, [f"trial={typed}: {str(error).lower()}. Give the settings of train.py, such as trial='model=tiny'."]
    if not overrides or any("=" not in override for override in overrides):
        return None, [f"trial={typed} is not a list of settings of train.py. Give them with blanks between: trial='model=tiny'."]
    full = [full_form(override, script="train") for override in overrides]
    if own := [one for one in map(override_key, full) if one.endswith(f".{TARGET}")]:
        return None, [f"trial: classes of your own are not tried with several vocabularies. Leave out {', '.join(own)}."]
    try:
        settings = load_settings(*overrides)
    except UserError as error:
        return None, [f"trial: {problem}" for problem in error.problems]
    if settings.init_from is not None or settings.resume is not None:
        return None, ["trial: only a model with new weights can have another vocabulary. Leave out init_from= and resume=."]
    return settings, []


def _suggest_size(settings: VocabularySettings, trial: TrainSettings, samples: VocabularySamples) -> None:
    """Train the model with several vocabularies, and print the best size.

    Raises:
        UserError: If the text or the time is too short.
    """
    from gpt_pretrain.evaluation.vocabulary_size import describe_suggestion
    from gpt_pretrain.system.formatting import format_duration, format_si
    from gpt_pretrain.system.terminal import quiet_lightning
    from gpt_pretrain.training.vocabulary_trials import plan_trials, run_trials

    quiet_lightning()
    tokenizers = _trial_tokenizers(settings, samples)
    smallest, largest = tokenizers[0].vocab_size, tokenizers[-1].vocab_size
    total_bytes = samples.corpus_bytes * min(trial.trainer.max_epochs, MAX_PASSES)
    plan = plan_trials(trial, tokenizers, samples.held_out, total_bytes=total_bytes, seconds=60 * settings.trial_minutes)
    print_escaped(
        f"Training {settings.trial} with {len(tokenizers)} vocabularies of {smallest:,} to {largest:,} tokens, on "
        f"{format_si(plan.text_bytes, 'B')} of text each, takes about {format_duration(plan.seconds)}. Ctrl-C ends it.",
        file=sys.stderr,
    )
    points = run_trials(
        trial,
        tokenizers,
        samples.training,
        samples.held_out,
        plan,
        report=lambda point: print_escaped(
            f"  {point.vocab_size:,} tokens: {point.bits_per_byte:.3f} bits per byte", file=sys.stderr
        ),
    )
    lines = describe_suggestion(points, bytes_per_token=plan.bytes_per_token, total_bytes=total_bytes)
    print_escaped("\n".join(["", f"Vocabulary size for {settings.trial}:", *lines]))


def _trial_tokenizers(settings: VocabularySettings, samples: VocabularySamples) -> list[VocabularyTokenizer]:
    """Train the vocabularies to compare, in ascending order of their sizes.

    Raises:
        UserError: If the text is too short, or has too few words.
    """
    from gpt_pretrain.evaluation.vocabulary_size import MIN_SIZES, MIN_TEXT, trial_sizes
    from gpt_pretrain.prepare.vocabulary import special_names
    from gpt_pretrain.tokenizers.bpe_training import train_bpe_sizes

    sizes = trial_sizes(samples.training.n_bytes)
    if not sizes or not samples.held_out.n_bytes:
        missing = f"at least {MIN_TEXT:,} bytes of text" if not sizes else "held-out text (val_fraction above 0)"
        raise UserError(f"trial: a suggestion needs {missing}. The vocabulary itself is complete.")
    trained = train_bpe_sizes(samples.training.texts(), sizes, pattern=settings.pattern, special_tokens=special_names(settings))
    tokenizers = list({one.vocab_size: one for one in trained}.values())  # A text of few words does not have all sizes.
    if len(tokenizers) < MIN_SIZES:
        raise UserError(f"trial: this text has only {tokenizers[-1].vocab_size:,} tokens, too few to compare sizes.")
    return tokenizers
