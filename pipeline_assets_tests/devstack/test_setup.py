"""What `make setup` installs can be had on every machine and for each Python that the README names, and stays."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

PROJECT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
LOCKED = {package["name"]: package for package in tomllib.loads((PROJECT / "uv.lock").read_text())["package"]}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize(("system", "machine"), [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")])
def test_what_has_no_sources_has_a_wheel(python: str, system: str, machine: str) -> None:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": system,
        "platform_machine": machine,
    }
    wanted = [
        Requirement(text) for text in (*PYPROJECT["project"]["dependencies"], *PYPROJECT["dependency-groups"]["dev"])
    ]
    without_sources = [
        requirement.name
        for requirement in wanted
        if "sdist" not in LOCKED[requirement.name]
        and (requirement.marker is None or requirement.marker.evaluate(environment))
    ]
    assert without_sources
    missing = [name for name in without_sources if not has_wheel(name, python, system, machine)]
    assert missing == []


def test_uv_is_told_the_interpreter_and_not_a_shim_of_it(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    for name, does in {
        "python3": f'exec "{sys.executable}" "$@"',
        "uv": f'echo "$@" > "{tmp_path}/told"; exit 9',
    }.items():
        program = tmp_path / name
        program.write_text(f"#!{bash}\n{does}\n")
        program.chmod(0o755)
    environment = {**os.environ, "PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]])}
    done = subprocess.run([bash, PROJECT / "devstack" / "setup.sh"], env=environment, check=False)
    assert done.returncode == 9
    *_, interpreter = (tmp_path / "told").read_text().split()
    # Otherwise uv makes an environment anew that is of this interpreter already.
    assert Path(interpreter).samefile(sys._base_executable)


def test_uv_is_the_image_s_version() -> None:
    versions = [
        re.findall(r"pip install .*\buv==(\S+)", path.read_text())
        for path in (PROJECT / "devstack" / "setup.sh", PROJECT / "docs" / "deployment" / "Dockerfile")
    ]
    assert versions[0] == versions[1] != []


def has_wheel(name: str, python: str, system: str, machine: str) -> bool:
    """Return whether a wheel of the locked version is for this Python on this machine."""
    prefix = {"linux": "manylinux", "darwin": "macosx"}[system]
    files = [PurePosixPath(wheel["url"]).name for wheel in LOCKED[name]["wheels"]]
    return any(
        tag.interpreter in ("py3", f"cp{python.replace('.', '')}")
        and (tag.platform == "any" or (tag.platform.startswith(prefix) and tag.platform.endswith(machine)))
        for file in files
        for tag in parse_wheel_filename(file)[3]
    )
