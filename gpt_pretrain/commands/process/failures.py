"""Report errors to the user, and exit with the right code."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt_pretrain.commands.process.job import is_hydra_job, is_multirun
from gpt_pretrain.errors import LostEndError, UserError
from gpt_pretrain.runs.metadata import was_interrupted
from gpt_pretrain.system.formatting import format_si, short_message, shorten_middle
from gpt_pretrain.system.resources import process_start
from gpt_pretrain.system.streams import has_no_output, lost_output
from gpt_pretrain.system.urls import hide_secrets
from gpt_pretrain.training.distributed.ranks import is_main, rank

EXIT_DEFECT, EXIT_LOST_END, EXIT_USER_ERROR = 1, 1, 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ELOOP, errno.EBUSY),
    *(errno.ENAMETOOLONG, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EISDIR, errno.ENOTDIR),
)
# Errors of a drive that is gone or does not answer, such as a network drive. Some systems lack some of them.
DRIVE_ERROR_NAMES = ("ENOTCONN", "ETIMEDOUT", "EREMOTEIO", "EHOSTDOWN", "ENODEV", "ENXIO", "ESTALE", "EIO")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
# What PyTorch's errors say if there is no memory, on a CPU and on a GPU.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
TORCH_AMOUNT = re.compile(r"tried to allocate (\d{1,18}) bytes")
LIBRARY_VARIABLES = ("TORCH", "PYTORCH_", "MPL", "SOURCE_DATE_EPOCH")
OTHER_RANK_DELAY_SECONDS = 3.0
MAX_TRACEBACK = 100_000  # characters; a traceback may quote a whole file
MAX_PROBLEMS = 100  # that are printed; each tensor in a stranger's file may be one

log = logging.getLogger("gpt_pretrain")


class SweepJobFailed(RuntimeError):
    """A job of a sweep failed for a reason that is already reported. The other jobs continue."""


@contextmanager
def report_failures(*, log_file: Path | None = None) -> Iterator[None]:
    """Report an error that the user can fix without a traceback, and exit with its code. In a sweep, only the job fails.

    Args:
        log_file: The file for the traceback.

    Raises:
        SystemExit: If the block fails.
        SweepJobFailed: If the block fails in a job of a sweep, with any error.
    """
    if is_multirun() and "torch" in sys.modules:
        from gpt_pretrain.system.devices import release_memory

        release_memory()  # The previous job ran in this process.
    try:
        yield
    except LostEndError as error:
        log.error("%s", error)
        if is_multirun():
            raise SweepJobFailed(str(error)) from None
        sys.exit(EXIT_LOST_END)
    except SystemExit as error:
        if is_multirun() and not was_interrupted(error):
            raise SweepJobFailed(f"The job ended with exit code {error.code}.") from None
        raise
    except Exception as error:
        reported = as_user_error(error)
        if reported is None:
            if not is_hydra_job():
                raise
            if not is_multirun():
                sys.exit(print_defect(error))
            reported = UserError(f"{type(error).__name__}: {error}")
            reported.__cause__ = error
        print_error(reported, log_file=None if isinstance(error, OSError) else log_file)
        if is_multirun():
            raise SweepJobFailed(reported.problems[0]) from None
        sys.exit(EXIT_USER_ERROR)


def print_error(error: UserError, *, log_file: Path | None = None) -> int:
    """Print each problem to standard error, add the traceback to a log file, and return the exit code.

    A problem may quote any file. It is therefore escaped, put on one line and shortened here as a whole. The code that builds the
    message need not do so.
    """
    from gpt_pretrain.system.terminal import escape_controls, escape_problem, indent_lines, open_log, print_escaped  # loads rich

    if not is_main():
        # Rank 0 most likely reports the same error. During the delay, its end also ends this process.
        time.sleep(OTHER_RANK_DELAY_SECONDS)
        print(f"rank {rank()}:", end=" ", file=sys.stderr)
    head = "error: " if len(error.problems) == 1 else f"{len(error.problems):,} errors:\n  - "
    shown = [*map(escape_problem, error.problems[:MAX_PROBLEMS])]
    if more := len(error.problems) - len(shown):
        shown.append(f"and {more:,} more.")
    print_escaped(head + "\n  - ".join(shown), file=sys.stderr)
    if log_file is not None:
        # The message is on the screen. A log that cannot be written must not replace it by another error.
        text = shorten_middle("".join(traceback.format_exception(error)), MAX_TRACEBACK)
        with suppress(OSError), open_log(log_file) as stream:
            stream.write(indent_lines(escape_controls(hide_secrets(text))) + "\n")
    return EXIT_USER_ERROR


def print_defect(error: Exception) -> int:
    """Print the traceback of an error that no user can fix, with control characters escaped, and return the exit code."""
    from gpt_pretrain.system.terminal import print_escaped  # loads rich

    print_escaped("".join(traceback.format_exception(error)).rstrip(), file=sys.stderr)
    return EXIT_DEFECT


def check_output(*, is_result: bool = False) -> None:
    """Check that everything was printed. A reader that has closed the pipe, like head, needs no more.

    Args:
        is_result: Whether the printed text is the command's only result.

    Raises:
        UserError: If standard output could not be written for another reason.
    """
    sys.stdout.flush()
    if is_result and has_no_output():
        raise UserError("Standard output is closed, so the result could not be printed. Leave out >&- or use > FILE.")
    error = lost_output()
    if error is not None and error.errno != errno.EPIPE:
        raise UserError(f"Standard output cannot be written: {error.strerror or error}. What was printed is incomplete.")


def _used_up_memory(error: Exception) -> UserError | None:
    """Return a message about memory that Python, PyTorch or the system could not get; None for other errors."""
    said = str(error)
    is_torch = isinstance(error, RuntimeError) and any(words in said for words in NO_MEMORY)
    is_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if not (is_torch or is_system or isinstance(error, MemoryError)):
        return None
    found = TORCH_AMOUNT.search(said)
    amount = "" if found is None else f" for {format_si(int(found[1]), 'B')} more"
    return UserError(
        f"There is not enough memory{amount}. End other programs, raise a limit such as ulimit -v, or take a smaller model, "
        "data.batch_size or model.context_length. plan=true shows what a training needs."
    )


def _disk_error(error: Exception) -> UserError | None:
    """Return a message about an error of the disk, the drive or the number of open files; None for other errors."""
    if not isinstance(error, OSError):
        return None
    name = error.filename2 or error.filename or _open_file(error) or "A file"  # filename2 is the file to be replaced
    failed = f"{name} cannot be opened, read or written: {error.strerror}."
    if error.errno in TOO_MANY_FILES:
        return UserError(f"{failed} The shell that starts the program allows more with: ulimit -n 4096")
    if errno.errorcode.get(error.errno or 0) in DRIVE_ERROR_NAMES:
        return UserError(f"{failed} Its drive does not work or does not answer. Connect it again, then repeat the command.")
    if error.errno in FULL_DISK:
        return UserError(f"{failed} Free some space there, or choose another folder.")
    return UserError(failed) if error.errno in DISK_ERRORS else None


def _open_file(error: OSError) -> str | None:
    """Return the name of the file that was being written. A failed write, unlike a failed open, does not name it."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in frame.f_locals.values():
            if isinstance(value, io.TextIOWrapper | io.BufferedWriter | io.FileIO):
                name = getattr(value, "name", None)  # a file in memory has none
                if isinstance(name, str):
                    return name
    return None


def _refused_variable(error: Exception) -> UserError | None:
    """Return a message about an environment variable that a library refuses while it is loaded; None for other errors."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    loaded = [frame for frame in frames if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") != "__main__"]
    if not isinstance(error, ValueError) or not loaded:
        return None
    said = str(error)
    for name, value in os.environ.items():
        if name.startswith(LIBRARY_VARIABLES) and value and value in said:
            return UserError(
                f"{name}={value}: a library refuses this environment variable ({short_message(said.strip())[:200]}). To do "
                f"without it: unset {name}"
            )
    return None


def _changed_program(error: Exception) -> UserError | None:
    """Return a message if a module of this program has changed since its process started; None for other errors."""
    file = getattr(error, "path", None)
    if not isinstance(error, ImportError) or file is None or Path(__file__).parents[2] not in Path(file).parents:
        return None
    seconds = time.monotonic() - process_start()
    with suppress(OSError):
        if time.time() - os.stat(file).st_mtime < seconds:
            return UserError(f"{file} has changed since this command started, as after git pull. Start the command again.")
    return None


def as_user_error(error: Exception) -> UserError | None:
    """Return the error as a message for the user, without passwords and signatures; None for a defect of the program."""
    if isinstance(error, ValueError) and isinstance(error.__cause__, OSError) and "Unable to configure handler" in str(error):
        error = error.__cause__  # Python's logging could not open the log of a run
    if isinstance(error, ValueError) and str(error).startswith("Unable to configure "):
        return UserError(f"hydra.job_logging: {error.__cause__ or error}. conf/hydra/job_logging/ has settings that work.")
    for explain in (_used_up_memory, _disk_error, _refused_variable, _changed_program):
        if (explained := explain(error)) is not None:
            return explained
    if not isinstance(error, UserError):
        return None
    error.problems = [short_message(problem) for problem in error.problems]
    error.args = ("\n".join(error.problems),)  # shown in a traceback
    return error
