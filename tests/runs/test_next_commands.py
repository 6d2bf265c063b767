"""The commands that are suggested to the user."""

import shlex

from gpt_pretrain.runs.next_commands import generate_command, page_command, repeat_command, resume_command, tensorboard_command


def test_suggested_commands_are_quoted_for_the_shell() -> None:
    folder, prompt = "outputs/it's $(one)", 'He said: "no" & `left`'
    assert shlex.split(generate_command(folder, start_context=prompt))[2:4] == [f"checkpoint={folder}", f"prompt={prompt}"]
    assert shlex.split(page_command(folder)) == ["python", "serve.py", f"checkpoint={folder}"]
    assert shlex.split(page_command(folder, named=["model._target_=mine.Model"]))[3:] == ["model._target_=mine.Model"]
    assert shlex.split(tensorboard_command(folder)) == ["tensorboard", "--logdir", folder]
    assert shlex.split(resume_command(folder, limit=("max_steps", 3)))[2:] == [f"resume={folder}", "trainer.max_steps=6"]
    assert resume_command("a") == "python train.py resume=a"


def test_a_suggested_command_has_one_line() -> None:
    """Further lines of a stranger's text could look like other commands."""
    assert "prompt='One line'" in generate_command("a", start_context="\n \nOne line\nNext:\n  rm -rf ~")
    assert "\n" not in generate_command("a", start_context="\n\n")
    assert repeat_command(["start_context=One\n  rm -rf ~"]) is None
    assert repeat_command(["start_context=One\r  rm -rf ~"]) is None


def test_the_best_job_of_a_search_is_repeated_without_the_search() -> None:
    overrides = ["model=tiny", "hparams_search=optuna", "optimizer.lr=0.001"]
    assert repeat_command(overrides) == "python train.py model=tiny optimizer.lr=0.001"
