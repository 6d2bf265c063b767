"""The commands of the command line `gpt-pretrain COMMAND`."""

from __future__ import annotations

import importlib
import signal
import sys

import gpt_pretrain
from gpt_pretrain.commands.process.failures import EXIT_INTERRUPTED, as_user_error, check_output, print_defect, print_error
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.checkout import run_script
from gpt_pretrain.system.environment import check_environment, decode_arguments, keep_imports_out_of_working_folder
from gpt_pretrain.system.interrupts import handle_interrupts
from gpt_pretrain.system.streams import prepare_streams

# The entry scripts. Hydra starts them.
ENTRY_SCRIPTS = {
    "train": "train a model on a text or a corpus",
    "generate": "continue a text with a trained model",
    "evaluate": "measure how well models predict a text or solve tasks",
    "serve": "continue texts over HTTP, for a page and for programs",
}
# Each of the other commands is the function COMMAND_command in the module gpt_pretrain.commands.COMMAND.
COMMANDS = {
    "lm_eval": "run the LM Evaluation Harness, with --model gpt_pretrain",
    "prepare": "turn text files or a dataset into token shards",
    "tokenizer": "train a vocabulary on text files or a dataset",
    "export": "export a model as a folder that transformers opens",
    "ladder": "find the best model for a text and a time by short trainings, then train it",
    "report": "write report.html for a run or a sweep",
    "compare": "plot the losses of several runs and print how their settings differ",
    "leaderboard": "rank the runs on each text by bits per byte, also those in other people's results files",
    "verify_resume": "check that a killed and resumed run ends like an uninterrupted one",
}
# Commands of litgpt, nanochat and transformers, and what to type here.
OTHER_COMMANDS = {
    **dict.fromkeys(("finetune", "finetune_full", "continue_pretrain"), "train init_from=NAME data.path=FILE"),
    "chat": "generate interactive=true",
    "sample": "generate",
    "download": "generate pretrained=NAME",
    **dict.fromkeys(("convert", "convert_from_litgpt"), "export checkpoint=latest out=FOLDER"),
    **dict.fromkeys(("resume", "continue"), "train resume=latest"),
    **dict.fromkeys(("sweep", "tune"), "train -m optimizer.lr=1e-4,1e-3"),
}


def main() -> None:
    """Run the command named by the first argument, and exit with its exit code."""
    prepare_streams()
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL):
        handle_interrupts()
    try:
        check_environment()
        keep_imports_out_of_working_folder()
        code = run_command(decode_arguments(sys.argv[1:]) or ["--help"])
        check_output()
        sys.exit(code)
    except Exception as error:
        reported = as_user_error(error)
        sys.exit(print_defect(error) if reported is None else print_error(reported))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def run_command(arguments: list[str]) -> int | None:
    """Run the command named by the first argument, and return its exit code; None means success."""
    name, *rest = arguments
    if name in ("-h", "--help", "help"):
        if rest and rest[0] in ENTRY_SCRIPTS | COMMANDS:
            return run_command([rest[0], "--help"])
        print(_usage())
        return None
    if name == "--version":
        print(f"gpt-pretrain {gpt_pretrain.__version__}")
        return None
    if name in ENTRY_SCRIPTS:
        run_script(f"{name}.py", rest)
        return None
    if name not in COMMANDS:
        raise _no_such_command(name)
    module = importlib.import_module(f"gpt_pretrain.commands.{name}")
    code: int | None = getattr(module, f"{name}_command")(rest)
    return code


def _no_such_command(name: str) -> UserError:
    from gpt_pretrain.config.setting_names import nearest  # loads the types of all settings

    known = [*ENTRY_SCRIPTS, *COMMANDS]
    close = nearest(name.lower().replace("-", "_").removesuffix(".py"), known)
    if (other := OTHER_COMMANDS.get(name)) is not None:
        return UserError(f"{name}: there is no such command. Type gpt-pretrain {other}")
    remedy = f"Did you mean {' or '.join(close)}?" if close else f"Choose from {', '.join(known)}."
    return UserError(f"{name}: there is no such command. {remedy}")


def _usage() -> str:
    summaries = ENTRY_SCRIPTS | COMMANDS
    width = max(map(len, summaries))
    lines = [f"  {name:{width}}  {summary}" for name, summary in summaries.items()]
    return "\n".join(
        ["Usage: gpt-pretrain COMMAND [setting=value ...]", "", *lines, "", "gpt-pretrain COMMAND --help explains its settings."]
    )
