"""Make common mistakes with training, and check that each message says what helps."""

from __future__ import annotations

import pytest

from tests.helpers.mistakes import LADDER, OWN_MODEL, SHARDS, TEXT, TRAIN, Script, check_message

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
    "resume_with_other_weights": (
        ("train.py", "resume=run2", "init_from=gpt2"),
        "resume and init_from exclude each other: resume continues a run, init_from starts a new one.",
    ),
    "two_models": ((*TEXT, "data.path=text.txt", "model=tiny,chapter5"), "Add -m. A single run has one of them."),
    "text_of_questions": (
        (*TEXT, "data.path=pairs.jsonl"),
        "question of a task (no field text in an object with context, continuation). This is a file of questions, not a text "
        "to train on. To score a model on them: python evaluate.py checkpoint=RUN tasks.path=pairs.jsonl",
    ),
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
    "least_rate_above_the_rate": (
        (*TEXT, "scheduler.min_lr=1", "data.path=text.txt"),
        "scheduler.min_lr=1.0: must be at most optimizer.lr=0.0004; a tenth of it is usual.",
    ),
    "rates_without_roles": ((*TEXT, "optimizer.head.lr=1e-3"), "has no groups by role. Add optimizer.decay=roles, or choose"),
    "too_many_processes": ((*TEXT, "trainer.devices=100000"), "or one for each GPU. Choose a smaller number."),
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
    "vocabulary_of_shards": (
        (*TRAIN, "data=shards", "data.path=corpus", "tokenizer=bpe"),
        "Train a vocabulary on the corpus first: gpt-pretrain tokenizer TEXT out=FOLDER, and prepare",
    ),
    "western_text": ((*TEXT, "data.path=western.txt"), "-t UTF-8 western.txt > new.txt"),
    "one_damaged_character": (
        (*TEXT, "data.path=damaged.txt"),
        "The rest of the text is UTF-8. Leave out the damaged characters:",
    ),
    "surrogates": (
        (*TEXT, "data.path=surrogates.txt"),
        "It contains surrogates, which a faulty conversion to UTF-8 left behind. Replace them: python -c",
    ),
    "only_settings": (
        (*TEXT, "data.path=settings.zip"),
        "1 JSON object without a field text (a.json). Set data.text_field= to the field that contains the text: title.",
    ),
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
}


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", CASES)
def test_a_common_mistake_has_a_message_that_helps(script: Script, name: str) -> None:
    check_message(script, *CASES[name])
