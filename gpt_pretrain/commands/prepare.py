"""Turn a corpus of text into token shards.

Usage: gpt-pretrain prepare INPUT [INPUT ...] out=FOLDER [setting=value ...]

  INPUT               a file, a directory or a "glob": text, JSON lines, a JSON array, CSV, TSV or Parquet; each also in .gz,
                      .bz2, .xz or .zst, or in a .tar or .zip archive
  out                 folder for the corpus; an interrupted preparation in it is resumed
  dataset             read a dataset instead of files: a name or path for the package datasets, which streams it;
                      select a part with dataset_config=NAME and dataset_split=NAME (default: train)
  text_field          field of a JSON record, or column of a table, that contains the text (default: text); dots lead into
                      nested fields
  as_text             true: read tables, JSON and HTML as plain text
  document_separator  string between the documents of a text file, for example "<|endoftext|>" or "\\n\\n\\n"
                      (default: each file is one document)
  tokenizer           gpt2 (default), byte, cl100k_base, a folder or file with a vocabulary, a hub model ...
  shard_tokens        maximum number of tokens per shard (default: 100M)
  val_fraction        share of the documents for the validation set, selected by the hash of their text (default: 0.01)
  val_tokens          minimum number of tokens in the validation set, instead of val_fraction
  dedup               none (default) or exact: leave out documents that have the same text as an earlier one
  max_rejected        largest share of unusable records to leave out; rejected.jsonl lists 10,000 (default: 0.001)
  max_failed_files    number of files that may be unreadable before their end (damaged archives, texts that are not UTF-8 ...);
                      the corpus is then incomplete, and the exit code is 3 (default: 0, which stops at the first such file)
  workers             number of worker processes (default: one per core); with executor=slurm or ray, per task (default: 1)
  executor            local, slurm or ray: encode with this executor of datatrove, in tasks=N groups of files (for SLURM
                      also set slurm_partition=NAME and slurm_time=20h); this process waits, then writes the shards
  report              true, or --report: print document lengths, compression and excerpts; also works for a complete corpus
  overwrite           true: replace the corpus in out; if this is interrupted, run the same command again

To resume an interrupted preparation, run the same command again. The corpus does not depend on the number of workers or on
interruptions: the same inputs and settings always give the same bytes.
"""

from __future__ import annotations

import sys

from gpt_pretrain.commands.command_line.arguments import parse_arguments
from gpt_pretrain.commands.command_line.unused_arguments import unused_arguments
from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.config.corpus_rules import prepare_problems
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.terminal import print_escaped

EXIT_INCOMPLETE = 3


def prepare_command(arguments: list[str]) -> int:
    """Run `gpt-pretrain prepare`, and return its exit code.

    Raises:
        UserError: If the settings are invalid or the corpus cannot be prepared.
    """
    settings = parse_arguments(arguments, PrepareSettings, usage=__doc__ or "", positional="inputs")
    from gpt_pretrain.prepare.pipeline import prepare_corpus

    if problems := prepare_problems(settings):
        raise UserError(problems)
    for sentence in unused_arguments(settings):
        print_escaped(sentence, file=sys.stderr)
    return 0 if prepare_corpus(settings) else EXIT_INCOMPLETE
