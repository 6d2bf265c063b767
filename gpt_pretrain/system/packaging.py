"""Build the package for an installation without the source folder. It includes copies of the entry scripts and of conf/.

Only setuptools uses this module; pyproject.toml names it. An editable installation uses the source folder itself.
"""

from __future__ import annotations

from pathlib import Path

from setuptools.command.build_py import build_py

ENTRY_SCRIPTS = ("train.py", "generate.py", "evaluate.py", "serve.py")
COPIES = Path("gpt_pretrain", "scripts")  # found there by gpt_pretrain/system/checkout.py


class BuildWithScripts(build_py):  # type: ignore[misc]
    """Build the Python modules and data files of the package, and copy the scripts and conf/ beside it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, copy in self._copies().items():
                self.mkpath(str(copy.parent))
                self.copy_file(str(source), str(copy), preserve_mode=False)

    def get_source_files(self) -> list[str]:
        """Return the files in a source distribution that are needed to build the package."""
        return [*super().get_source_files(), *map(str, _sources())]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the files that are installed."""
        copies = [] if self.editable_mode else [str(copy) for copy in self._copies().values()]
        return [*super().get_outputs(include_bytecode), *copies]

    def _copies(self) -> dict[Path, Path]:
        return {source: Path(self.build_lib) / COPIES / source for source in _sources()}


def _sources() -> list[Path]:
    return [*map(Path, ENTRY_SCRIPTS), *sorted(Path("conf").rglob("*.yaml"))]
