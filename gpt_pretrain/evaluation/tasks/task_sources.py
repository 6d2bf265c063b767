"""Read the tasks that the settings name: files, the CORE set, or tasks on the hub."""

from __future__ import annotations

from gpt_pretrain.config.inference_schema import TaskSettings
from gpt_pretrain.evaluation.tasks.core_tasks import CONFIG, is_core_folder, read_core_tasks
from gpt_pretrain.evaluation.tasks.hub_tasks import read_hub_task
from gpt_pretrain.evaluation.tasks.task_files import find_tasks
from gpt_pretrain.evaluation.tasks.task_items import Task
from gpt_pretrain.system.environment import user_path


def load_tasks(settings: TaskSettings) -> list[Task]:
    """Return all tasks that the settings name.

    Raises:
        UserError: If one of them cannot be read.
    """
    n_shots, limit = settings.n_shots, settings.limit
    if settings.path is None:
        return [read_hub_task(name, limit=limit, n_shots=n_shots or 0) for name in dict.fromkeys(settings.names)]
    local = user_path(settings.path)
    folder = local.parent if local.name == CONFIG else local
    if is_core_folder(folder):
        return read_core_tasks(folder, limit=limit, n_shots=n_shots)
    return find_tasks(settings.path, limit=limit, n_shots=n_shots or 0)
