"""Write the page that tells of a run or a sweep: report.html in its folder.

Usage: gpt-pretrain report [FOLDER ...]

  FOLDER  a run's folder, a checkpoint in one, a sweep's folder, or latest, which stands here if nothing does: the newest run
          below outputs/

The page is written from the files that are there, so that a run which was killed, or is still going on, can have one too.
"""

from __future__ import annotations

from gpt_pretrain.commands.arguments import parse_arguments
from gpt_pretrain.config.command_schema import ReportSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import display_path, find_run_folder
from gpt_pretrain.sweeps.write_report import write_report


def report_command(arguments: list[str]) -> None:
    """Write the page of each folder that the settings name."""
    settings = parse_arguments(arguments, ReportSettings, usage=__doc__ or "", positional="folders")
    for folder in [find_run_folder(name) for name in settings.folders]:
        try:
            print(display_path(write_report(folder)))
        except OSError as error:
            raise UserError(f"{folder}: its page cannot be written: {error.strerror or error}.") from error
