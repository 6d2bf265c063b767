"""Train a vocabulary on a corpus of text.

Usage: gpt-pretrain tokenizer INPUT [INPUT ...] out=FOLDER [vocab_size=4096] [setting=value ...]

  INPUT               a file, a directory or a "glob", as for gpt-pretrain prepare
  out                 folder for tokenizer.json and tokenizer_config.json; an earlier vocabulary there is replaced
  vocab_size          number of tokens, with the 256 bytes and the special tokens (default: 4096)
  pattern             how a text is divided into words: as by cl100k_base (default), or by gpt2
  special_tokens      names of further special tokens, separated by commas; <|endoftext|> always is one, and the last token
  sample_bytes        text to train on (default: 50000000); of a larger corpus, the pieces with the smallest hashes are taken
  val_fraction        share of the pieces to hold out for the report, selected by the hash of their text (default: 0.01)
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

from gpt_pretrain.commands.arguments import parse_arguments
from gpt_pretrain.config.command_schema import VocabularySettings
from gpt_pretrain.config.validation import vocabulary_problems
from gpt_pretrain.errors import UserError


def tokenizer_command(arguments: list[str]) -> None:
    """Run `gpt-pretrain tokenizer`.

    Raises:
        UserError: If the settings are invalid or the corpus cannot be read.
    """
    settings = parse_arguments(arguments, VocabularySettings, usage=__doc__ or "", positional="inputs")
    from gpt_pretrain.prepare.vocabulary import train_vocabulary

    if problems := vocabulary_problems(settings):
        raise UserError(problems)
    train_vocabulary(settings)
