"""Check that the files which the jobs of a sweep name exist, before the first job trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gpt_pretrain.config.free_text import plain_value
from gpt_pretrain.config.overrides import split_override
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.environment import user_path

OF_WEIGHTS = ("init_from", "checkpoint", "pretrained")
OF_FILES = ("prompt_file", "tasks.path")


def check_named_files(jobs: Iterable[Sequence[str]]) -> None:
    """Check the paths in the overrides of jobs. A missing one would fail its job after the others have trained.

    Raises:
        UserError: If some are missing. It lists all of them.
    """
    named = dict.fromkeys(split_override(override) for overrides in jobs for override in overrides)
    if problems := [problem for key, value in named for problem in _file_problems(key, plain_value(value))]:
        raise UserError(problems)


def _file_problems(key: str, value: str) -> Iterator[str]:
    if value in ("", "null") or "${" in value:
        return
    try:
        if key == "data.path":
            from gpt_pretrain.texts.missing_files import check_text_exists

            check_text_exists(value)
        elif key in OF_WEIGHTS and not user_path(value).exists():
            from gpt_pretrain.checkpoints.weight_source import check_weights_exist  # it loads torch

            check_weights_exist(value)
        elif key in OF_FILES and not user_path(value).exists():
            yield f"{key}={value}: there is no such file. Check the path."
    except UserError as error:
        yield from (problem if problem.startswith(f"{key}=") else f"{key}={problem}" for problem in error.problems)
    except OSError:
        return  # The job says what is wrong with such a path.
