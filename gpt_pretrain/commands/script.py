"""The frame around an entry script: the setup of Hydra, the arguments, and the exit code."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import gpt_pretrain
from gpt_pretrain.commands.command_line.command_words import NO_RUN, SCHEMAS
from gpt_pretrain.commands.command_line.hydra_arguments import to_hydra_arguments
from gpt_pretrain.commands.command_line.hydra_errors import explain_hydra_error
from gpt_pretrain.commands.process.failures import EXIT_INTERRUPTED, as_user_error, check_output, print_defect, print_error
from gpt_pretrain.commands.process.job import typed_arguments
from gpt_pretrain.commands.run_folder_check import remove_empty_folders
from gpt_pretrain.config.custom_parts import CUSTOM_GROUPS, open_schema
from gpt_pretrain.config.overrides import override_key
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.config.setting_names import find_type
from gpt_pretrain.system.checkout import completion_hint, script_command
from gpt_pretrain.system.environment import check_environment, decode_arguments, keep_imports_out_of_working_folder
from gpt_pretrain.system.interrupts import handle_interrupts
from gpt_pretrain.system.streams import prepare_streams
from gpt_pretrain.training.distributed.launch import QUIET, agree_on_overrides, launch_info, node_rank
from gpt_pretrain.training.distributed.ranks import (
    check_rank_variables,
    exit_without_teardown,
    explain_lost_ranks,
    is_distributed,
)
from gpt_pretrain.training.distributed.requeue import earlier_run

TEXTS = ("prompt", "start_context")  # settings with texts as values
LOST_OUTPUT = (
    "Standard output cannot be written any longer ({reason}). Training continues; its messages are in the run's train.log."
)
FULL_ERROR = "HYDRA_FULL_ERROR"  # environment variable: Hydra raises its errors instead of printing them


def register_schema() -> None:
    """Register the types of all settings with Hydra, and the resolvers of conf/."""
    store = ConfigStore.instance()
    # For each group that --help lists, Hydra copies its sources of settings and with them the whole store. Nothing changes the
    # store through such a copy, since Hydra copies again what it reads. The copies can therefore share one store.
    ConfigStore.__deepcopy__ = _share  # type: ignore[attr-defined]
    for name, schema in SCHEMAS.items():
        store.store(f"{name}_schema", open_schema(schema) if schema is TrainSettings else schema)
    for group in CUSTOM_GROUPS:
        store.store(f"{group}_schema", find_type(TrainSettings, group))
    OmegaConf.register_new_resolver("unique", lambda: secrets.token_hex(3), use_cache=True, replace=True)
    OmegaConf.register_new_resolver("script", script_command, replace=True)  # in the texts of --help
    OmegaConf.register_new_resolver("completion", lambda script: completion_hint(script).replace("$", "$$"), replace=True)


def _share(store: ConfigStore, _memo: dict[int, Any]) -> ConfigStore:
    return store


@contextmanager
def hydra_script(name: str) -> Iterator[None]:
    """Rewrite a script's arguments for Hydra before the block, and turn its errors into exit codes.

    Args:
        name: "train", "generate", "evaluate" or "serve".

    Raises:
        SystemExit: If the script fails or is interrupted.
    """
    trains = name == "train" and NO_RUN.isdisjoint(sys.argv[1:])
    prepare_streams(notice=LOST_OUTPUT if trains else None)
    # In a rank that this program has started, the launcher has set the variable.
    debugging = os.environ.get(FULL_ERROR) == "1" and launch_info() is None
    with exit_without_teardown():
        try:
            if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set by the entry script while it loads
                handle_interrupts()
            check_environment()
            keep_imports_out_of_working_folder()
            sys.argv[1:] = decode_arguments(sys.argv[1:], texts=TEXTS)
            if "--version" in sys.argv[1:]:  # Hydra would print its own version
                print(f"gpt-pretrain {gpt_pretrain.__version__}")
                sys.exit(0)
            check_rank_variables()
            register_schema()
            sys.argv[1:] = _rank_arguments(name) if name == "train" and is_distributed() else _arguments(name)
            os.environ[FULL_ERROR] = "1"
            yield
            if not trains:  # the output is the result
                check_output(is_result=True)
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)
        except Exception as error:  # Some of Hydra's errors are also an OSError.
            reported = as_user_error(error) or (None if debugging else explain_hydra_error(error, script=name))
            sys.exit(print_defect(error) if reported is None else print_error(reported))
        finally:
            remove_empty_folders()


def _arguments(name: str) -> list[str]:
    arguments = to_hydra_arguments(sys.argv[1:], script=name)
    if not node_rank():
        return arguments
    # Only the first machine writes files.
    return [*arguments, *QUIET, *([] if "hydra.run.dir" in map(override_key, arguments) else ["hydra.run.dir=."])]


def _rank_arguments(name: str) -> list[str]:
    """Return the arguments, agreed on by all processes of a training."""
    typed = typed_arguments()
    with explain_lost_ranks():
        return agree_on_overrides(lambda: to_hydra_arguments(sys.argv[1:], script=name), earlier_run=lambda: earlier_run(typed))
