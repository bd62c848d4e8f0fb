"""The version stands in one place."""

import tomllib
from importlib.metadata import version
from pathlib import Path

import stec


def test_the_version_of_the_package_is_that_of_the_installed_project() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "stec.__version__"}
    assert version("stec") == stec.__version__
