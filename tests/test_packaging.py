"""What the package says of itself: its version in one place, and every library that it imports."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import wsigen
from wsigen.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
OURS = {"wsigen", "wsigen_kernels"}
# Names that are imported under another name than the package is installed by.
PACKAGES = {"PIL": "pillow", "openslide": "openslide-python", "distributed": "dask", "turbojpeg": "pyturbojpeg"}


def declared_packages() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = sum(project["optional-dependencies"].values(), project["dependencies"])
    return {re.split(r"[\s<>=!~;\[]", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def imported_packages() -> dict[str, str]:
    """Packages that are imported anywhere in the product, each with a module that does so."""
    found: dict[str, str] = {}
    for path in (path for folder in ("wsigen", "kernels") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            found |= {name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | OURS}


def test_every_library_that_is_imported_is_declared():
    declared = declared_packages()
    missing = {
        name: path
        for name, path in imported_packages().items()
        if PACKAGES.get(name, name).lower().replace("_", "-") not in declared
    }
    assert not missing, "declare them in pyproject.toml: as dependencies, or in the extra that needs them"


def test_the_version_stands_in_one_place(tmp_path):
    pytest.importorskip("setuptools")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "wsigen").mkdir()
    shutil.copy(ROOT / "wsigen" / "__init__.py", tmp_path / "wsigen")
    source = (ROOT / "wsigen" / "version.py").read_text(encoding="utf-8")
    raised = source.replace(f'__version__ = "{wsigen.__version__}"', '__version__ = "98.76"')
    (tmp_path / "wsigen" / "version.py").write_text(raised, encoding="utf-8")
    code = "from setuptools import Distribution; d = Distribution(); d.parse_config_files(); print(d.get_version())"
    command, clean = [sys.executable, "-W", "ignore", "-c", code], {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "98.76"


def test_the_command_line_says_the_version():
    assert CliRunner().invoke(main, ["--version"]).output.split()[-1] == wsigen.__version__
