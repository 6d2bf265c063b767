"""The lower bounds of the dependencies, the tested versions, and the guide's list of known flaws agree."""

import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT


def requirements() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for part in project["optional-dependencies"].values() for line in part)]
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(one.name): one for one in found}


def pinned_versions() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_the_pinned_versions_are_within_the_bounds() -> None:
    tested = pinned_versions()
    outside = [str(one) for name, one in requirements().items() if name in tested and not one.specifier.contains(tested[name])]
    assert outside == []


def test_the_list_of_known_flaws_names_the_bounds() -> None:
    table = re.findall(r"^\| ([\w, -]+) \| ([\d., ]*) \| ([\d., ]+) \|", (ROOT / "docs" / "sharing.md").read_text(), re.MULTILINE)
    assert len(table) >= 10
    needed, tested = requirements(), pinned_versions()
    for names, bounds, versions in table:
        packages = [canonicalize_name(name) for name in names.split(", ")]
        listed = dict(zip(packages, bounds.split(", ") * len(packages), strict=False)) if bounds else {}
        for package, bound in listed.items():
            assert f">={bound}" in [str(one) for one in needed[package].specifier], package
        for package, version in zip(packages, versions.split(", ") * len(packages), strict=False):
            assert tested[package] == version
