"""Find the text that the settings name: the sample story of the package, a download, or the user's files."""

from __future__ import annotations

import logging
from functools import cache
from importlib import resources
from pathlib import Path

from gpt_pretrain.config.schema import DataSettings
from gpt_pretrain.data.private_cache import temporary_cache
from gpt_pretrain.data.remote.download import download
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.environment import user_cache_folder, user_path
from gpt_pretrain.texts.text import Text, find_text_files

log = logging.getLogger(__name__)


def cache_folder(settings: DataSettings) -> Path:
    """Return the folder for downloads and token files: data.cache_dir or, if that is null, the user's cache folder.

    Raises:
        UserError: If the user has no home folder, and no folder for temporary files can be written.
    """
    if settings.cache_dir is not None:
        return user_path(settings.cache_dir)
    try:
        return user_cache_folder()
    except OSError as error:
        _warn_of_temporary_cache(error.strerror)
        return temporary_cache()


@cache
def _warn_of_temporary_cache(reason: str) -> None:
    log.warning("%s. Name a folder for the cache with data.cache_dir=FOLDER; until then, the cache is temporary.", reason)


def find_text(settings: DataSettings, *, cache_dir: Path) -> Text:
    """Return the text that the `data` settings name: path (a file, directory or glob), else url, else the sample story.

    Args:
        cache_dir: Folder for downloads.

    Raises:
        UserError: If there is no such file, or the download fails.
    """
    if settings.path is not None:
        files = find_text_files(settings.path, text_field=settings.text_field, as_text=settings.as_text)
        return Text(files, settings.text_field, settings.as_text)
    if settings.url is not None:
        file = download(settings.url, sha256=settings.sha256, cache_dir=cache_dir)
        return Text((file,), settings.text_field, settings.as_text)
    if settings.name != "sample":
        raise UserError(f"data={settings.name} needs data.path=FILE, DIRECTORY or GLOB.")
    return Text((Path(str(resources.files("gpt_pretrain") / "data" / "sample.txt")),))
