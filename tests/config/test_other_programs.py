"""Settings of other programs are answered with what they are called here."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from gpt_pretrain.commands.command_line.argument_checks import override_problems
from gpt_pretrain.commands.command_line.command_words import schema_of, sort_arguments
from gpt_pretrain.commands.command_line.hydra_arguments import check_arguments
from gpt_pretrain.config.other_programs import OPTION_REMEDIES, REMEDIES, VALUE_REMEDIES, counterpart, explain_python_file
from gpt_pretrain.config.overrides import full_form
from gpt_pretrain.errors import UserError

# Values that a setting accepts; the others are given 2.
VALUES = {"dtype": "float16", "mixed_precision": "bf16", "device": "cuda:0", "report_to": "wandb", "ckpt_path": "run"}


OTHERS = ("generate", "evaluate", "serve")  # scripts that have the same answers


def problems(*arguments: str, script: str = "train") -> list[str]:
    try:
        check_arguments(sort_arguments([full_form(argument, script=script) for argument in arguments]), script=script)
    except UserError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    ("script", "argument", "answer"),
    [
        ("train", "--device=cuda:0", "--device=cuda:0: there is no such option. Type trainer.accelerator=cuda"),
        ("train", "dtype=bfloat16", "dtype=bfloat16: there is no such setting. Type trainer.precision=bf16-mixed"),
        ("train", "--beta2=0.99", "--beta2=0.99: there is no such option. Type 'optimizer.betas=[0.9,0.99]'"),
        ("train", "fp16=False", "fp16=False: there is no such setting. Leave this out: it is off unless you turn it on."),
        ("train", "torch_compile=false", "torch_compile=false: there is no such setting. Type compile=false"),
        ("train", "mixed_precision=no", "mixed_precision=no: there is no such setting. Type trainer.precision=32-true"),
        ("train", "trainer.fast_dev_run=true", "trainer.fast_dev_run=true: there is no such setting. Type debug=fast"),
        ("train", "ckpt_path=a/last.ckpt", "ckpt_path=a/last.ckpt: there is no such setting. Type resume=a/last.ckpt"),
        ("train", "init_from=resume", "init_from=resume: Type resume=latest"),
        ("train", "--init_from=gpt2", "--init_from=gpt2: settings are written without dashes. Type init_from=gpt2"),
        ("train", "model.compile=true", "model.compile=true: there is no such setting. Did you mean compile?"),
        ("train", "trainer=mps", "trainer=mps: the group trainer has no option mps. Type trainer.accelerator=mps"),
        ("train", "hydra/sweeper=optuna", "hydra/sweeper=optuna: there is no such option. Type hparams_search=optuna"),
        ("train", "hydra.sweeper=optuna", "hydra.sweeper=optuna: there is no such option. Type hparams_search=optuna"),
        (
            "train",
            "hydra.launcher=joblib",
            "hydra.launcher=joblib: options of Hydra's groups are written with a slash. Type hydra/launcher=joblib",
        ),
        ("train", "help", "help: settings are written as name=value. Type --help to see some."),
        ("generate", "--out_dir=out", "--out_dir=out: there is no such option. Type checkpoint=out"),
        ("generate", "--init_from=gpt2-xl", "--init_from=gpt2-xl: there is no such option. Type pretrained=gpt2-xl"),
        ("generate", "--start=FILE:a b.txt", "--start=FILE:a b.txt: there is no such option. Type 'prompt_file=a b.txt'"),
        ("serve", "--model=gpt2", "--model=gpt2: there is no such option. Type pretrained=gpt2"),
        ("serve", "model=gpt2", "model=gpt2: the group model has no option gpt2. Type pretrained=gpt2"),
        (
            "serve",
            "do_sample=true",
            "do_sample=true: there is no such setting. generate.py samples with sampler.temperature=T above 0, and serve.py if a "
            "request says so; a temperature of 0 takes the likeliest token.",
        ),
        (
            "serve",
            "sampler.temperature=0.7",
            "sampler.temperature=0.7: there is no such setting. Clients send it with each text: a request to /v1/completions has the "
            "field temperature.",
        ),
        (
            "serve",
            "max_new_tokens=20",
            "max_new_tokens=20: there is no such setting. Clients send it with each text: a request to /v1/completions has the field "
            "max_tokens.",
        ),
        (
            "evaluate",
            "top_k=25",
            "top_k=25: there is no such setting. evaluate.py samples no text: a score follows from the probabilities of the tokens that "
            "a text has. Leave this out.",
        ),
        ("evaluate", "ckpt_path=run", "ckpt_path=run: there is no such setting. Type checkpoint=run"),
    ],
)
def test_arguments_of_other_programs_are_answered_with_what_to_type(script: str, argument: str, answer: str) -> None:
    assert problems(argument, script=script) == [answer]


def test_what_the_answers_say_to_type_is_accepted() -> None:
    advised = [
        (answer, script)
        for names, forms in REMEDIES.items()
        for name in names.split()
        for script, form in (("train", forms[0]), *((other, forms[1]) for other in OTHERS))
        if form is not None
        and (answer := counterpart(name, VALUES.get(name, "2"), schema=schema_of(script))) is not None
        and form.partition(" ")[0] == answer.partition(" ")[0]
    ]
    advised += [
        (answer, "train") for answer in (*OPTION_REMEDIES.values(), *(forms[0] or "" for forms in VALUE_REMEDIES.values()))
    ]
    advised += [(forms[1] or "", other) for forms in VALUE_REMEDIES.values() for other in OTHERS]
    typed = [
        (override, script) for answer, script in advised if answer.startswith("Type ") for override in shlex.split(answer)[1:]
    ]
    assert len(typed) > 40
    assert [found for override, script in typed if "=" in override for found in override_problems(override, script=script)] == []


def test_no_name_has_two_answers() -> None:
    names = [name for row in REMEDIES for name in row.split()]
    assert len(names) == len(set(names))


def test_a_file_of_settings_in_python_is_translated(tmp_path: Path) -> None:
    file = tmp_path / "train_x.py"
    file.write_text(
        "# small\nbatch_size = 12 # windows\nn_embd = 128\nbeta2 = 0.99\nout_dir = 'a b'\ndtype = 'float16'\nx = f()\n"
    )
    assert explain_python_file(str(file)) == (
        f"{file}: settings are not read from Python files. Those of this file are written here: data.batch_size=12 model.emb_dim=128 "
        "'optimizer.betas=[0.9,0.99]' 'hydra.run.dir=a b' trainer.precision=16-mixed"
    )
    with pytest.raises(UserError, match=r"Those of this file are written here: data\.batch_size=12"):
        check_arguments(sort_arguments([str(file)]), script="train")
    file.write_text("wandb_log = True\nwandb_project = 'p'\nwandb_run_name = 'n'\n")
    assert explain_python_file(str(file)).endswith("written here: logger=wandb logger.wandb.project=p logger.wandb.name=n")
    file.write_text("wandb_log = False\nwandb_project = 'p'\nwandb_run_name = 'n'\nbatch_size = 8\n")
    assert explain_python_file(str(file)).endswith("written here: data.batch_size=8")
    file.write_text("def (")
    expected = "settings are not read from Python files. Settings that belong together are in a file experiment/NAME.yaml"
    assert all(expected in explain_python_file(str(one)) for one in (file, tmp_path / "missing.py"))
    file.write_text(f"n_layer = 0x{'f' * 5000}")
    assert expected in explain_python_file(str(file))
    assert problems("config/missing.py") == [explain_python_file("config/missing.py")]
