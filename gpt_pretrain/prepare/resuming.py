"""Start a preparation, or resume an interrupted one, also of an earlier version."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare import corpus_folder
from gpt_pretrain.prepare.cluster import unfinished_tasks
from gpt_pretrain.prepare.corpus_folder import PLAN, WORK
from gpt_pretrain.prepare.segments import total_counts
from gpt_pretrain.system.files import write_json
from gpt_pretrain.system.recognition.file_kinds import LINES, PARQUET
from gpt_pretrain.system.terminal import print_escaped
from gpt_pretrain.texts.inputs import CorpusInputs
from gpt_pretrain.tokenizers.base import END_OF_TEXT


def start_or_resume(folder: Path, description: dict[str, Any], *, overwrite: bool) -> dict[str, Any]:
    """Write the plan of a new preparation and return it, or return the folder's plan if it is the same.

    Args:
        overwrite: Delete the corpus in the folder first, unless an interrupted run of the same command has done so.

    Raises:
        UserError: If the folder contains another corpus, or other files.
    """
    plan, new_plan = corpus_folder.read_plan(folder), description | {"overwrite": overwrite}
    if overwrite and plan != new_plan:
        corpus_folder.clear_corpus(folder)
        plan = None
    elif plan is not None and plan | {"overwrite": None} != new_plan | {"overwrite": None} and not _has_tokens(folder):
        corpus_folder.clear_corpus(folder)  # No tokens are lost, for example after a wrong text_field=.
        plan = None
    if plan is None:
        corpus_folder.check_no_conflicts(folder)
        write_json(folder / WORK / PLAN, new_plan)
        return new_plan
    if has_old_rules(plan):
        del description["work"]["text_rules"]
    corpus_folder.check_same(plan, description, folder=folder, state="unfinished")
    print_escaped(f"{folder}: resuming an interrupted preparation.", file=sys.stderr)
    return plan


def has_old_rules(plan: dict[str, Any]) -> bool:
    """Return whether a preparation was started by the rules of an earlier version.

    Those rules did not unify line ends, and did not encode an end-of-text marker in a text as a token.
    """
    work = plan.get("work")
    return not isinstance(work, dict) or "text_rules" not in work


def check_old_rules_can_go_on(inputs: CorpusInputs, task_folders: list[Path], folder: Path) -> None:
    """Check that the rest of an earlier version's corpus can be encoded in the same way as its beginning.

    Raises:
        UserError: If some of the remaining files were read differently, or if the journal counts their bytes differently.
    """
    kinds = [file.kind for file in inputs.files]
    if any((kind.content or kind.form) not in (LINES, PARQUET) for kind in kinds) and unfinished_tasks(task_folders):
        raise UserError(
            f"{folder} contains an unfinished corpus of an earlier version of gpt-pretrain, which turned line ends and "
            f"{END_OF_TEXT} in a text into other tokens. Finish it with that version, or start over with overwrite=true."
        )


def _has_tokens(folder: Path) -> bool:
    """Return whether an interrupted preparation has encoded any tokens."""
    return total_counts(sorted((folder / WORK).glob("task-*"))).tokens > 0
