"""Make common mistakes with corpora and vocabularies, and check that each message says what helps."""

from __future__ import annotations

import pytest

from tests.helpers.mistakes import PREPARE, VOCABULARY, Script, check_message

# Name of a case: the command, and what its message says.
CASES = {
    "corpus_nowhere": (("-m", "gpt_pretrain", "prepare", "tokenizer=byte", "text.txt"), "out= is missing."),
    "corpus_at_its_input": ((*PREPARE, "text.txt", "out=text.txt"), "out=text.txt is a file. Choose a folder for the corpus."),
    "corpus_within_a_file": (
        (*PREPARE, "pairs.jsonl", "out=text.txt/corpus"),
        "out=text.txt/corpus: text.txt is a file. Choose a folder for the corpus.",
    ),
    "corpus_behind_a_url": (
        (*PREPARE, "text.txt", "out=s3://bucket/corpus"),
        "out=s3://bucket/corpus is a URL, but a path on this machine is needed.",
    ),
    "vocabulary_behind_a_url": (
        (*VOCABULARY, "out=https://me:secret@example.org/own", "text.txt"),
        "example.org/own is a URL, but a path on this machine is needed.",
    ),
    "corpus_around_its_input": ((*PREPARE, "text.txt", "out=."), "text.txt is inside out=., which is reserved for the corpus."),
    "corpus_in_its_input": ((*PREPARE, "core_set", "out=core_set"), "out=core_set is also an input. Choose another folder"),
    "corpus_beside_its_tokenizer": (
        (*PREPARE, "text.txt", "tokenizer=clip", "out=clip"),
        "out=clip is the folder of the tokenizer. Choose another folder for the corpus.",
    ),
    "corpus_over_another_manifest": (
        (*PREPARE, "text.txt", "out=foreign"),
        "foreign/manifest.json is not a manifest of gpt-pretrain. Choose another folder with out=.",
    ),
    "corpus_over_a_damaged_manifest": (
        (*PREPARE, "text.txt", "out=ruined"),
        "Choose another folder with out=, or start over with overwrite=true.",
    ),
    "corpus_of_questions": (
        (*PREPARE, "pairs.jsonl"),
        "This is a file of questions, not a text to train on. To score a model on them: python evaluate.py checkpoint=RUN",
    ),
    "corpus_without_path": (("-m", "gpt_pretrain", "prepare", "text.txt", "out="), "error: out= has no value. Type out=PATH"),
    "corpus_without_tokenizer": ((*PREPARE, "text.txt", "tokenizer="), "tokenizer= has no value. Type tokenizer=NAME"),
    "slurm_without_partition": ((*PREPARE, "text.txt", "executor=slurm"), "Add slurm_partition=NAME."),
    "dataset_in_parts": ((*PREPARE, "dataset=name", "executor=local"), "but dataset= is a single stream. Leave out executor=."),
    "url_as_input": (
        (*PREPARE, "https://example.org/a.txt"),
        "is a URL, but only files on this machine are read. Download it first.",
    ),
    "empty_folder": ((*PREPARE, "run"), "run: the folder has no files."),
    "vocabulary_trial_of_an_own_model": (
        (*VOCABULARY, "out=own", "text.txt", "trial=model._target_=torch.nn.Identity"),
        "trial: classes of your own are not tried with several vocabularies. Leave out model._target_.",
    ),
    "vocabulary_trial_of_nothing_known": (
        (*VOCABULARY, "out=own", "text.txt", "trial=model=huge"),
        "trial: model=huge: the group model has no option huge. Its options are chapter5",
    ),
    "vocabulary_trial_without_end": (
        (*VOCABULARY, "out=own", "text.txt", "trial=model='tiny"),
        "trial=model='tiny: no closing quotation. Give the settings of train.py, such as trial='model=tiny'.",
    ),
    "vocabulary_of_a_locked_archive": (
        (*VOCABULARY, "out=own", "locked.zip"),
        "A file is not read: locked.zip/a.txt, record 1: not unpacked (a.txt is encrypted; unpack the archive first). Do that or leave",
    ),
    "vocabulary_trial_of_nothing": (
        (*VOCABULARY, "out=own", "text.txt", "trial="),
        "trial= is not a list of settings of train.py. Give them with blanks between: trial='model=tiny'.",
    ),
    "vocabulary_trial_with_weights": (
        (*VOCABULARY, "out=own", "text.txt", "trial=model=tiny init_from=gpt2"),
        "trial: only a model with new weights can have another vocabulary. Leave out init_from= and resume=.",
    ),
    "vocabulary_trial_of_a_short_text": (
        (*VOCABULARY, "out=own", "text.txt", "vocab_size=300", "trial=model=tiny"),
        "trial: a suggestion needs at least 50,000 bytes of text. The vocabulary itself is complete.",
    ),
    "vocabulary_trial_without_time": (
        (*VOCABULARY, "out=own", "text.txt", "trial=model=tiny", "trial_minutes=0"),
        "trial_minutes=0.0: must be at least 0.1 minutes",
    ),
    "vocabulary_trained_by_prepare": (
        (*PREPARE[:4], "tokenizer=bpe", "text.txt"),
        "train a vocabulary first: gpt-pretrain tokenizer TEXT out=FOLDER. Then give tokenizer=FOLDER.",
    ),
    "files_and_dataset": (
        (*PREPARE, "text.txt", "dataset=name"),
        "Files and dataset= cannot be combined. Prepare one corpus from",
    ),
    "vocabulary_of_nothing": ((*VOCABULARY, "out=own"), "There is no input. Give files, directories or globs, or dataset=NAME"),
    "vocabulary_of_gone_files": (
        (*VOCABULARY, "out=own", "gone.txt"),
        "gone.txt: no such file, directory, glob match or setting.",
    ),
    "vocabulary_too_small": (
        (*VOCABULARY, "out=own", "text.txt", "vocab_size=100"),
        "vocab_size=100: must be between 257 tokens",
    ),
    "vocabulary_without_room": (
        (*VOCABULARY, "out=own", "text.txt", "vocab_size=257", "special_tokens=<|user|>"),
        "vocab_size=257 must be at least 258: 256 bytes and the special tokens.",
    ),
    "vocabulary_in_a_file": (
        (*VOCABULARY, "out=text.txt", "text.txt"),
        "out=text.txt is a file. Choose a folder for the vocabulary.",
    ),
    "vocabulary_of_a_cut_archive": ((*VOCABULARY, "out=own", "cut.tar"), "Replace it or leave it out."),
    "vocabulary_of_numbers": (
        (*VOCABULARY, "out=own", "numbers.jsonl"),
        "3 of 3 records cannot be used, more than max_rejected=0.001",
    ),
    "locked_zip": ((*PREPARE, "locked.zip"), "a.txt is encrypted; unpack the archive first"),
    "rare_zip": ((*PREPARE, "rare.zip"), "a.txt is compressed with a rare method; unpack the archive first"),
    "cut_tar": ((*PREPARE, "cut.tar"), "the archive is truncated"),
    "sparse_tar": ((*PREPARE, "sparse.tar"), "a.txt is stored as a sparse file; unpack the archive first"),
    "open_bracket": ((*PREPARE, "bracket.json"), "damaged file (a bracket at byte 36 closes nothing)"),
    "array_instead_of_object": (
        (*PREPARE, "lists.jsonl"),
        "cannot be used (not an object: 3)",
    ),
    "number_instead_of_text": ((*PREPARE, "numbers.jsonl"), "text is not a string (it is a number)"),
    "old_japanese": (
        (*PREPARE, "japanese.txt"),
        "is a text in ISO-2022-JP. Convert it first, for example with: iconv -f ISO-2022-JP",
    ),
    "two_columns": (
        (*PREPARE, "two.csv"),
        "two.csv has 2 columns named text. Rename all of them except the column with the text.",
    ),
    "lists_as_text": (
        (*PREPARE, "lists.parquet"),
        "lists.parquet: its column text is of the type list<element: string>, not text. Set text_field= to another column: body. To make "
        'one text of each list, join its parts first, for example with the package datasets: dataset.map(lambda row: {"text": '
        '"\\n".join(row["text"])}).to_parquet("joined.parquet")',
    ),
    "half_a_utf16": ((*PREPARE, "half.txt"), "it begins like UTF-16"),
    "links_to_nothing": ((*PREPARE, "links"), "more are links to missing files, whose text would be missing."),
    "dataset_with_very_many_fields": (
        (*PREPARE, "dataset=fields"),
        "The records of this dataset have more than 2,000 different fields,",
    ),
}


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", CASES)
def test_a_common_mistake_has_a_message_that_helps(script: Script, name: str) -> None:
    check_message(script, *CASES[name])
