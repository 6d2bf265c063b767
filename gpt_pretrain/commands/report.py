"""Write report.html for a run or a sweep, in its folder.

Usage: gpt-pretrain report [FOLDER ...]

  FOLDER  run folder, checkpoint in one, sweep directory, or latest for the newest run in
          outputs/, or the sweep that it belongs to (default: latest)

The page shows what the existing files contain, so killed and unfinished runs can have one too.
"""

from __future__ import annotations

from pathlib import Path

from gpt_pretrain.commands.command_line.arguments import parse_arguments
from gpt_pretrain.config.command_schema import ReportSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import display_path, find_run_folder
from gpt_pretrain.runs.report.saving import is_run, save_run_page
from gpt_pretrain.sweeps.folder import is_sweep
from gpt_pretrain.system.terminal import print_escaped


def report_command(arguments: list[str]) -> None:
    """Write the report page of each folder."""
    settings = parse_arguments(arguments, ReportSettings, usage=__doc__ or "", positional="folders")
    for folder in map(_find_folder, settings.folders):
        try:
            print_escaped(display_path(write_report(folder)))
        except OSError as error:
            raise UserError(
                f"{folder}: report.html cannot be written ({error.strerror or error}). Check the permissions and the free space."
            ) from error


def _find_folder(name: str) -> Path:
    """Return the folder that a name refers to. If the newest run belongs to a sweep, return the sweep's: it covers all runs."""
    folder = find_run_folder(name)
    return folder.parent if name == "latest" and is_sweep(folder.parent) else folder


def write_report(folder: Path) -> Path:
    """Write the report page of the run or the sweep in a folder, and return the page's file.

    Raises:
        UserError: If the folder contains neither, or a sweep of generate.py.
        OSError: If the page cannot be written.
    """
    if is_sweep(folder):
        from gpt_pretrain.sweeps.report_page import save_sweep_page

        return save_sweep_page(folder)
    if is_run(folder):
        return save_run_page(folder)
    raise UserError(f"{folder}: this folder holds neither a run nor a sweep, so there is nothing to report.")
