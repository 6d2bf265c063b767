"""Find the best model for a text and a time with a few short trainings, and train it for the rest of the time.

Usage: gpt-pretrain ladder data.path=FILE budget=2h [setting=value ...]

  data.path  the text: a file, a folder or a "glob", as for python train.py
  budget     the time for all trainings together, such as 30m, 2h or 1h30m

Three models of different sizes are trained for a short time each, and one of them also with two other learning rates. The
program fits its law of expected losses to the results, and chooses the size and the learning rate for the rest of the time. The
trainings are the jobs of a sweep, so python train.py sweep_resume=latest continues an interrupted ladder. report.html in the
sweep's folder has a picture. Other settings of train.py apply to every training.
"""

from __future__ import annotations

from gpt_pretrain.commands.command_line.arguments import wants_help
from gpt_pretrain.system.checkout import run_script, script_command

SWEEP = ("-m", "hparams_search=ladder")


def ladder_command(arguments: list[str]) -> None:
    """Run train.py as a ladder."""
    if wants_help(arguments):
        print((__doc__ or "").strip().replace("python train.py", script_command("train.py")))
        return
    run_script("train.py", [*SWEEP, *arguments])
