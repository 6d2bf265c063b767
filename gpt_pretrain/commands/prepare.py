"""Turn a corpus of text into shards of tokens.

Usage: gpt-pretrain prepare INPUT INPUT ... out=FOLDER [setting=value ...]

  INPUT               a file, a directory or a "glob": .txt, .md, .jsonl (each also .gz or .zst), .parquet
  out                 the folder to write; a corpus that was begun there is gone on with
  dataset             instead of inputs: a name or path that the package datasets takes, read as a stream;
                      dataset_config=NAME and dataset_split=train choose in it
  text_field          where a record of JSON or of a table has its text; text, unless you say otherwise
  document_separator  what stands between the documents of a text file, for example "<|endoftext|>" or "\\n\\n\\n"; without it
                      each file is one document
  tokenizer           gpt2 (as it stands), byte, cl100k_base ...
  shard_tokens        tokens a file, 100000000 at most as it stands
  val_fraction        share of the documents that is for validation, 0.01 as it stands, chosen by the hash of their text
  val_tokens          instead: the documents with the smallest hashes that have together at least so many tokens
  dedup               exact: leave out documents whose text came before; none, as it stands
  max_rejected        share of the records that may be unusable, 0.001 as it stands; they are kept in rejected.jsonl
  workers             processes that encode; all cores, unless you say otherwise
  executor            local, slurm or ray: datatrove's executors do the encoding, a group of files in each of tasks=N tasks
                      (slurm_partition=NAME, slurm_time=20:00:00); this process waits, and writes the shards
  report              true, or --report: print lengths, compression and examples, also of a corpus that is complete
  overwrite           true: remove the corpus that is in out and make another; interrupted, that goes on as well

The same input gives the same bytes, whatever the number of workers and however often the work was interrupted: the same command
goes on where it was.
"""

from __future__ import annotations

from gpt_pretrain.commands.arguments import parse_arguments
from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.config.validation import prepare_problems
from gpt_pretrain.errors import UserError


def prepare_command(arguments: list[str]) -> None:
    """Prepare what the settings name."""
    settings = parse_arguments(arguments, PrepareSettings, usage=__doc__ or "", positional="inputs")
    from gpt_pretrain.prepare.job import prepare_corpus

    if problems := prepare_problems(settings):
        raise UserError(problems)
    prepare_corpus(settings)
