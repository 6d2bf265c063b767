"""Remove passwords and signatures from Hydra's files in .hydra/ before a job begins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from gpt_pretrain.config.secrets import override_without_secrets, secret_values, settings_without_secrets
from gpt_pretrain.system.files import write_text
from gpt_pretrain.system.urls import hide_secrets

FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")
OVERRIDE = re.compile(r"[+~]*[\w./@]+=")


def cut_hydra_files(config: DictConfig) -> None:
    """Rewrite Hydra's files of a job if its settings contain secrets. Other jobs' files stay as they are.

    Hydra offers no way to remove secrets before it writes the files.

    Args:
        config: Hydra's whole config of the job.
    """
    folder, subfolder = config.hydra.runtime.output_dir, config.hydra.output_subdir
    _, known = _settings_and_secrets(config)
    if subfolder is None or not known:
        return
    for file in (Path(folder) / subfolder / name for name in FILES):
        if file.is_file() and not file.is_symlink():
            content = _cut(yaml.safe_load(file.read_text(encoding="utf-8")), known)
            write_text(file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def cut_sweep_settings(config: DictConfig) -> DictConfig:
    """Return the settings of a sweep without secrets, as composed by Hydra; unchanged if they have none."""
    settings, known = _settings_and_secrets(config)
    # Swept values occur only in the overrides, not in the composed settings of a sweep.
    cut = _cut(settings, known)
    return config if cut == settings else OmegaConf.create(cut)


def _settings_and_secrets(config: DictConfig) -> tuple[dict[Any, Any], list[str]]:
    settings = OmegaConf.to_container(config)
    assert isinstance(settings, dict)
    return settings, secret_values({name: value for name, value in settings.items() if name != "hydra"})


def _cut(content: Any, known: Iterable[str]) -> Any:
    """Return the content of one of Hydra's files without secrets."""
    if isinstance(content, Mapping):
        settings = settings_without_secrets({name: value for name, value in content.items() if name != "hydra"})
        # The order is kept: in the settings of a sweep, Hydra's section is the first one.
        return {
            name: _cut_texts(_cut_override_dirname(value), known) if name == "hydra" else settings[name]
            for name, value in content.items()
        }
    return _cut_texts(content, known)


def _cut_override_dirname(hydra: Any) -> Any:
    """Remove secrets from the text in which Hydra joins all overrides. There, one override cannot be told from the next."""
    match hydra:
        case {"overrides": {"task": list(overrides)}, "job": {"override_dirname": str(joined)} as job}:
            for override in sorted(map(str, overrides), key=len, reverse=True):
                joined = joined.replace(override, override_without_secrets(override))
            return hydra | {"job": job | {"override_dirname": joined}}
    return hydra


def _cut_texts(value: Any, known: Iterable[str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _cut_texts(part, known) for name, part in value.items()}
    if isinstance(value, list):
        return [_cut_texts(part, known) for part in value]
    if not isinstance(value, str):
        return value
    return hide_secrets(override_without_secrets(value) if OVERRIDE.match(value) else value, known=known)
