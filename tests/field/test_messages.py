"""What people do wrong most often: each command, and the message that says what happened and what helps."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Script = Callable[..., "subprocess.CompletedProcess[str]"]

TRAIN = ("train.py", "model=tiny", "data.cache_dir=cache", "trainer.accelerator=cpu", "trainer.max_steps=1")
PREPARE = ("-m", "gpt_pretrain", "prepare", "out=corpus", "tokenizer=byte")
SHARDS = (*TRAIN, "data=shards", "tokenizer=byte")
TEXT = (*TRAIN, "data=text", "tokenizer=byte")
COMPARE = ("-m", "gpt_pretrain", "compare")
LADDER = ("-m", "gpt_pretrain", "ladder", "data.cache_dir=cache", "trainer.accelerator=cpu")
LEADERBOARD = ("-m", "gpt_pretrain", "leaderboard")

OWN_MODEL = ("train.py", "data.cache_dir=cache", "trainer.accelerator=cpu", "tokenizer=byte", "data=text", "data.path=text.txt")
VOCABULARY = ("-m", "gpt_pretrain", "tokenizer")

# Name of a case: the command, and what its message says.
CASES = {
    "two_loggers": (
        (*TEXT, "data.path=text.txt", "logger=tensorboard,csv"),
        "logger=tensorboard,csv: only a sweep tries several values. Add -m. All of them in one run: 'logger=[tensorboard,csv]'",
    ),
    "two_sets_of_callbacks": (
        (*TEXT, "data.path=text.txt", "callbacks=early_stopping,grid"),
        "Add -m. All of them in one run: 'callbacks=[early_stopping,grid]'",
    ),
    "options_of_a_part_that_is_null": (
        (*TEXT, "data.path=text.txt", "callbacks.early_stopping={patience: 3}"),
        "callbacks.early_stopping is null here, so it has no settings. Choose callbacks=early_stopping as well.",
    ),
    "corpus_nowhere": (("-m", "gpt_pretrain", "prepare", "tokenizer=byte", "text.txt"), "out= is missing."),
    "corpus_at_its_input": ((*PREPARE, "text.txt", "out=text.txt"), "out=text.txt is a file. Choose a folder for the corpus."),
    "corpus_within_a_file": (
        (*PREPARE, "pairs.jsonl", "out=text.txt/corpus"),
        "out=text.txt/corpus: text.txt is a file. Choose a folder for the corpus.",
    ),
    "corpus_behind_a_url": (
        (*PREPARE, "text.txt", "out=s3://bucket/corpus"),
        "out=s3://bucket/corpus is a URL, but a folder on this machine is needed for the corpus.",
    ),
    "vocabulary_behind_a_url": (
        (*VOCABULARY, "out=https://me:secret@example.org/own", "text.txt"),
        "example.org/own is a URL, but a folder on this machine is needed for the vocabulary.",
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
    "resume_with_other_weights": (
        ("train.py", "resume=run2", "init_from=gpt2"),
        "resume and init_from exclude each other: resume continues a run, init_from starts a new one.",
    ),
    "task_of_two_kinds": (
        ("evaluate.py", "pretrained=gpt2", "tasks.path=mixed.jsonl"),
        "tasks.path=mixed.jsonl: some items have choices and others do not. Divide them into two files.",
    ),
    "two_models": ((*TEXT, "data.path=text.txt", "model=tiny,chapter5"), "Add -m. A single run has one of them."),
    "text_of_questions": (
        (*TEXT, "data.path=pairs.jsonl"),
        "question of a task (no field text in an object with context, continuation). This is a file of questions, not a text "
        "to train on. To score a model on them: python evaluate.py checkpoint=RUN tasks.path=pairs.jsonl",
    ),
    "corpus_of_questions": (
        (*PREPARE, "pairs.jsonl"),
        "This is a file of questions, not a text to train on. To score a model on them: python evaluate.py checkpoint=RUN",
    ),
    "compare_nothing": ((*COMPARE,), "0 runs given, but a comparison needs at least two."),
    "compare_one": ((*COMPARE, "run"), "1 run given, but a comparison needs at least two."),
    "ladder_without_text_and_time": ((*LADDER,), "A ladder needs a text: data.path=FILE, DIRECTORY or GLOB."),
    "ladder_too_short": (
        (*LADDER, "data.path=text.txt", "budget=5m"),
        "Give it at least 13m, or train at once: python train.py data.path=FILE budget=5m",
    ),
    "ladder_of_tokens": ((*LADDER, "data.path=text.txt", "budget=1e9 tokens"), "a ladder divides a time, such as budget=2h."),
    "ladder_with_a_model": (
        (*LADDER, "data.path=text.txt", "budget=2h", "model=tiny"),
        "model=: a ladder measures which one is best.",
    ),
    "ladder_with_several_seeds": ((*LADDER, "data.path=text.txt", "budget=2h", "seed=1,2"), "so each setting has one value."),
    "ladder_with_steps": (
        (*LADDER, "data.path=text.txt", "budget=2h", "trainer.max_steps=5"),
        "trainer.max_steps= and budget= both decide how long a ladder is. Leave out trainer.max_steps=.",
    ),
    "ladder_without_a_sweep": (
        (*TEXT, "data.path=text.txt", "hparams_search=ladder"),
        "hparams_search=ladder needs a sweep. Add -m.",
    ),
    "leaderboard_of_a_missing_file": ((*LEADERBOARD, "theirs.json"), "theirs.json: no such file or folder."),
    "leaderboard_of_a_text": ((*LEADERBOARD, "text.txt"), "text.txt: this is not a results file: it cannot be read as JSON"),
    "leaderboard_of_other_results": (
        (*LEADERBOARD, "bracket.json"),
        "gpt-pretrain leaderboard out=results.json writes such a file.",
    ),
    "leaderboard_as_a_picture": ((*LEADERBOARD, "out=board.png"), "out=board.png: must end in .json."),
    "leaderboard_without_path": ((*LEADERBOARD, "out="), "out= has no value. Type out=PATH"),
    "corpus_without_path": (("-m", "gpt_pretrain", "prepare", "text.txt", "out="), "error: out= has no value. Type out=PATH"),
    "corpus_without_tokenizer": ((*PREPARE, "text.txt", "tokenizer="), "tokenizer= has no value. Type tokenizer=NAME"),
    "sweep_of_a_server": (("serve.py", "-m", "checkpoint=run"), "serve.py has no sweeps (-m). It serves several models at once"),
    "server_with_wrong_settings": (
        ("serve.py", "port=70000", "cors=[example.org]", "max_rows=0", "api_key=short"),
        "port=70000: must be between 0 and 65535; 0 takes any free port.",
    ),
    "time_line_of_no_run": (
        ("serve.py", "models=[run,run]", "timeline=3"),
        "timeline=3 adds checkpoints of the run that checkpoint= names. To choose others, list them instead: models=[",
    ),
    "answers_of_a_sweep": (
        ("generate.py", "-m", "checkpoint=run", "prompts=text.txt", "seed=1,2"),
        "so they cannot be combined with a sweep (-m).",
    ),
    "window_step_of_the_whole_window": (
        ("generate.py", "checkpoint=run", "sampler.window_step=1"),
        "must be a share of the context above 0 and below 1, such as 0.25",
    ),
    "evaluating_with_rounded_weights": (
        ("evaluate.py", "checkpoint=run", "precision=int8"),
        "precision=int8: must be one of auto, 32-true, bf16-mixed.",
    ),
    "answers_of_a_conversation": (
        ("generate.py", "checkpoint=run", "interactive=true", "out=a.jsonl"),
        "cannot be combined with out=a.jsonl",
    ),
    "stop_strings_without_text": (
        ("generate.py", "checkpoint=run", "stop=['']"),
        "must be at most 16 texts of 1 to 1,000 characters",
    ),
    "plan_of_a_sweep": ((*TEXT, "-m", "plan=true", "seed=1,2"), "plan=true describes a single run and cannot be combined with"),
    "budget_of_an_unknown_kind": (
        (*TEXT, "budget=soon"),
        "budget='soon': must be a time such as 90s, 20m or 1h30m, '1e9 tokens',",
    ),
    "budget_without_unit": ((*TEXT, "budget=20"), "budget='20': the unit is missing. It must be a time such as 90s,"),
    "budget_of_minutes_or_millions": (
        (*TEXT, "budget=20M"),
        "budget='20M': M may stand for minutes or millions. Type 20min, or '20M tokens'.",
    ),
    "budget_without_time": ((*TEXT, "budget=0s"), "budget='0s': a time must be above 0 and at most 365d."),
    "budget_of_too_many_tokens": ((*TEXT, "budget=1e99 tokens"), "must be between 1 and 1e+15 tokens."),
    "budget_and_steps": (
        (*TEXT, "budget=20m"),
        "trainer.max_steps and budget=20m both decide how long the run is. Leave out one",
    ),
    "budget_and_weights": (
        ("train.py", "init_from=gpt2", "budget=20m"),
        "budget= chooses a new model, but init_from= loads one.",
    ),
    "budget_and_own_optimizer": (
        ("train.py", "data.path=text.txt", "optimizer=custom", "optimizer._target_=torch.optim.SGD", "budget=20m"),
        "budget= chooses only among the built-in parts, but optimizer._target_ names one of your own. Leave out one of them.",
    ),
    "own_optimizer_over_devices": (
        (*TEXT, "data.path=text.txt", "optimizer=custom", "optimizer._target_=torch.optim.SGD", "trainer=fsdp"),
        "your own optimizer cannot train a model that is spread over devices,",
    ),
    "budget_and_experiment": (
        ("train.py", "experiment=bytes", "budget=20m"),
        "experiment= and budget= both choose the settings of",
    ),
    "budget_and_shards": (
        ("train.py", "data=shards", "budget=20m"),
        "budget= chooses a vocabulary for a text, but data=shards has tokens already. Leave out budget=;",
    ),
    "budget_and_debug": (("train.py", "debug=fast", "budget=20m"), "debug= and budget= both choose the settings of"),
    "budget_of_a_text_of_a_word": (
        ("train.py", "data.path=word.txt", "data.cache_dir=cache", "budget=20m"),
        "The text has 5 characters, too few to learn from.",
    ),
    "budget_of_no_step": (
        ("train.py", "data.path=text.txt", "data.cache_dir=cache", "budget=100 tokens"),
        "budget='100 tokens' is too small for 20 optimizer steps",
    ),
    "resumed_sweep": ((*TEXT, "-m", "resume=run", "seed=1,2"), "To resume a sweep: sweep_resume="),
    "weights_twice": (
        ("generate.py", "checkpoint=run", "pretrained=gpt2"),
        "checkpoint and pretrained both name the weights to use. Set only one of them.",
    ),
    "slurm_without_partition": ((*PREPARE, "text.txt", "executor=slurm"), "Add slurm_partition=NAME."),
    "dataset_in_parts": ((*PREPARE, "dataset=name", "executor=local"), "but dataset= is a single stream. Leave out executor=."),
    "url_as_input": (
        (*PREPARE, "https://example.org/a.txt"),
        "is a URL, but only files on this machine are read. Download it first.",
    ),
    "empty_folder": ((*PREPARE, "run"), "run: the folder has no files."),
    "runs_picture_of_another_kind": ((*COMPARE, "run", "run", "out=x.doc"), "out=x.doc: must end in one of .png, .pdf, .svg."),
    "report_of_nothing": (("-m", "gpt_pretrain", "report", "links"), "links: this folder holds neither a run nor a sweep"),
    "no_such_command": (("-m", "gpt_pretrain", "train"), "serve, verify_resume. Type: python train.py"),
    "least_rate_above_the_rate": (
        (*TEXT, "scheduler.min_lr=1", "data.path=text.txt"),
        "scheduler.min_lr=1.0: must be at most optimizer.lr=0.0004; a tenth of it is usual.",
    ),
    "rates_without_roles": ((*TEXT, "optimizer.head.lr=1e-3"), "has no groups by role. Add optimizer.decay=roles, or choose"),
    "too_many_processes": ((*TEXT, "trainer.devices=100000"), "for each core or one for each GPU. Choose a smaller number."),
    "mixture_without_sources": ((*TRAIN, "data=mixture", "tokenizer=byte"), "data=mixture needs data.sources='[{path: FOLDER,"),
    "own_model_without_weights": (
        (*OWN_MODEL, "model._target_=torch.nn.Identity"),
        "model._target_=torch.nn.Identity has no weights to train.",
    ),
    "own_model_that_is_none": (
        (*OWN_MODEL, "model._target_=torch.optim.SGD"),
        "model._target_=torch.optim.SGD is not a model: it must derive from torch.nn.Module.",
    ),
    "own_model_that_fails": (
        (*OWN_MODEL, "model._target_=torch.nn.Linear", "model.in_features=3", "model.out_features=4"),
        "model._target_=torch.nn.Linear fails on token ids of the shape (1, 256) and the type int64: RuntimeError:",
    ),
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
    "vocabulary_of_shards": (
        (*TRAIN, "data=shards", "data.path=corpus", "tokenizer=bpe"),
        "Train a vocabulary on the corpus first: gpt-pretrain tokenizer TEXT out=FOLDER vocab_size=4096, and prepare",
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
    "western_text": ((*TEXT, "data.path=western.txt"), "-t UTF-8 western.txt > new.txt"),
    "one_damaged_character": (
        (*TEXT, "data.path=damaged.txt"),
        "The rest of the text is UTF-8. Leave out the damaged characters:",
    ),
    "old_japanese": (
        (*PREPARE, "japanese.txt"),
        "is a text in ISO-2022-JP. Convert it first, for example with: iconv -f ISO-2022-JP",
    ),
    "surrogates": (
        (*TEXT, "data.path=surrogates.txt"),
        "It contains surrogates, which a faulty conversion to UTF-8 left behind. Replace them: python -c",
    ),
    "two_columns": (
        (*PREPARE, "two.csv"),
        "two.csv has 2 columns named text. Rename all but the one that contains the text.",
    ),
    "lists_as_text": (
        (*PREPARE, "lists.parquet"),
        "lists.parquet: its column text is of the type list<element: string>, not text. Set text_field= to another column: body.",
    ),
    "only_settings": (
        (*TEXT, "data.path=settings.zip"),
        "1 JSON object without a field text (a.json). Set data.text_field= to the one that contains the text: title.",
    ),
    "half_a_utf16": ((*PREPARE, "half.txt"), "it begins like UTF-16"),
    "links_to_nothing": ((*PREPARE, "links"), "more are links to missing files, whose text would be missing."),
    "floats_as_tokens": ((*SHARDS, "data.path=floats"), "it has the shape (100,) and the type float32"),
    "llama3_shard": ((*SHARDS, "data.path=llama3"), "this program has no tokenizer for Llama 3"),
    "clip_vocabulary": ((*TEXT, "data.path=text.txt", "tokenizer=clip"), "its words end in </w>, as those of CLIP"),
    "empty_vocabulary": ((*TEXT, "data.path=text.txt", "tokenizer=nothing"), "its vocabulary is empty"),
    "weights_that_do_not_exist": (
        (*TEXT, "data.path=text.txt", "init_from=./gone.pt"),
        "Check the path, or give a model on the hub",
    ),
    "weights_that_were_not_downloaded": (
        (*TEXT, "data.path=text.txt", "init_from=pointer.pt"),
        "pointer.pt is a Git LFS pointer, not weights. It stands for a file that was not downloaded.",
    ),
    "weights_of_tensorflow": (
        (*TEXT, "data.path=text.txt", "init_from=run1"),
        "holds weights for TensorFlow. Only those for PyTorch can be read",
    ),
    "task_of_another_name": (
        ("evaluate.py", "pretrained=gpt2", "tasks.names=[mmlu]"),
        "tasks.names=mmlu: there is no such task. Choose from lambada, hellaswag, piqa, arc_easy, arc_challenge, winogrande, copa;",
    ),
    "tasks_from_two_places": (
        ("evaluate.py", "pretrained=gpt2", "tasks.names=[piqa]", "tasks.path=pairs.jsonl"),
        "tasks.path and tasks.names cannot be combined. Evaluate twice.",
    ),
    "task_with_negative_examples": (
        ("evaluate.py", "pretrained=gpt2", "tasks.path=pairs.jsonl", "tasks.n_shots=-1"),
        "tasks.n_shots=-1: must be from 0 to 100, or null.",
    ),
    "task_without_a_connection": (
        ("evaluate.py", "pretrained=gpt2", "tasks.names=[piqa]"),
        "tasks.names=piqa: baber/piqa cannot be read from the hub: ",
    ),
    "task_of_the_hub_beside_a_folder": (
        ("evaluate.py", "pretrained=gpt2", "tasks.names=[copa]"),
        "tasks.names=copa: the current folder contains a folder aps/super_glue,",
    ),
    "dataset_with_very_many_fields": (
        (*PREPARE, "dataset=fields"),
        "The records of this dataset have more than 2,000 different fields,",
    ),
    "task_with_too_few_examples": (
        ("evaluate.py", "pretrained=gpt2", "tasks.path=pairs.jsonl", "tasks.n_shots=5"),
        "pairs: examples are drawn from its other items. That needs 6 items, but there are 2. Choose a smaller tasks.n_shots",
    ),
    "task_with_another_label": (
        ("evaluate.py", "pretrained=gpt2", "tasks.path=labels.jsonl"),
        'tasks.path=labels.jsonl, line 1: "label" is 2, but must be 0 or 1.',
    ),
    "task_with_a_field_twice": (
        ("evaluate.py", "pretrained=gpt2", "tasks.path=fields.jsonl"),
        "tasks.path=fields.jsonl, line 1: 'context' is given twice.",
    ),
    "core_without_baselines": (
        ("evaluate.py", "pretrained=gpt2", "tasks.path=core_set"),
        "tasks.path=core_set/eval_meta_data.csv cannot be used: No such file or directory.",
    ),
}


@pytest.fixture
def files(tmp_path: Path) -> None:
    """Write the files that the commands name."""
    text = "The quick brown fox jumps over the lazy dog. " * 60
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "word.txt").write_text("moves")
    (tmp_path / "pointer.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 123\n")
    (tmp_path / "run1").mkdir()
    (tmp_path / "run1" / "model-1000.index").touch()
    (tmp_path / "western.txt").write_bytes(("Déjà vu à la fenêtre. " * 60).encode("latin-1"))
    (tmp_path / "damaged.txt").write_bytes("Déjà vu à la fenêtre. ".encode() * 60 + b"\xff" + b" and more" * 9)
    (tmp_path / "half.txt").write_bytes(b"\xff\xfe" + text.encode("utf-16-le") + b"\x00\xd8\x20\x00")
    (tmp_path / "bracket.json").write_text('[{"text": "some"}}, {"text": "more"}]')
    (tmp_path / "japanese.txt").write_bytes("これは日本語の文章です。".encode("iso2022_jp"))
    (tmp_path / "surrogates.txt").write_bytes(b"x \xed\xa0\xbd\xed\xb8\x80 y\n")
    pq.write_table(pa.table({"text": [["a"]], "body": ["b"]}), tmp_path / "lists.parquet")
    (tmp_path / "two.csv").write_text("text,text\na,b\n")
    with zipfile.ZipFile(tmp_path / "settings.zip", "w") as archive:
        archive.writestr("a.json", '{"title": "x"}')
    (tmp_path / "lists.jsonl").write_text('[["text"]]\n' * 3)
    (tmp_path / "numbers.jsonl").write_text('{"text": 5}\n' * 3)
    for name, method in (("rare.zip", zipfile.ZIP_LZMA), ("locked.zip", zipfile.ZIP_STORED)):
        with zipfile.ZipFile(tmp_path / name, "w", method) as archive:
            archive.writestr("a.txt", text)
    locked = bytearray((tmp_path / "locked.zip").read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag of an encrypted member
        locked[locked.index(mark) + offset] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    for name, kind in (("cut.tar", tarfile.REGTYPE), ("sparse.tar", tarfile.GNUTYPE_SPARSE)):
        with tarfile.open(tmp_path / name, "w") as archive_of_tar:
            member = tarfile.TarInfo("a.txt")
            member.size, member.type = len(text), kind
            archive_of_tar.addfile(member, io.BytesIO(text.encode()))
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:2000])
    (tmp_path / "pairs.jsonl").write_text('{"context": "a", "continuation": "b"}\n{"context": "c", "continuation": "d"}\n')
    mixed = '{"context": "a", "continuation": "b"}\n{"context": "a", "choices": ["b", "c"], "label": 1}\n'
    (tmp_path / "mixed.jsonl").write_text(mixed)
    for folder, content in (("foreign", "{}"), ("ruined", "[")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "manifest.json").write_text(content)
    (tmp_path / "run2" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run2" / "checkpoints" / "last.ckpt").write_bytes(b"PK")
    (tmp_path / "labels.jsonl").write_text('{"context": "a", "choices": ["b", "c"], "label": 2}\n')
    (tmp_path / "fields.jsonl").write_text('{"context": "a", "context": "b", "continuation": "c"}\n')
    (tmp_path / "aps" / "super_glue").mkdir(parents=True)
    (tmp_path / "fields").mkdir()
    (tmp_path / "fields" / "a.jsonl").write_text("".join(f'{{"f{number}": 1}}\n' for number in range(2001)))
    (tmp_path / "core_set").mkdir()
    entry = "{label: a, icl_task_type: schema, dataset_uri: a.jsonl, num_fewshot: [0]}"
    (tmp_path / "core_set" / "core.yaml").write_text(f"icl_tasks: [{entry}]")
    for folder in ("run", "cache", "links", "floats", "llama3", "clip", "nothing"):
        (tmp_path / folder).mkdir()
    for name in ("one.txt", "two.txt"):
        (tmp_path / "links" / name).symlink_to("gone.txt")
    for part in ("train", "val"):
        np.save(tmp_path / "floats" / f"{part}.npy", np.zeros(100, np.float32))
        (tmp_path / "llama3" / f"a_{part}_000001.bin").write_bytes(struct.pack("<3i", 20240801, 7, 100) + bytes(1012 + 400))
    (tmp_path / "clip" / "vocab.json").write_text(json.dumps({f"{letter}</w>": number for number, letter in enumerate("abc")}))
    (tmp_path / "clip" / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (tmp_path / "nothing" / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {}}}))


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", CASES)
def test_a_common_mistake_has_a_message_that_helps(script: Script, name: str) -> None:
    command, message = CASES[name]
    done = script(*command)
    assert message in " ".join(done.stderr.split())
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
