"""What users get: the built wheel, read and imported where no checkout can help it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

import graphbuild
import graphbuild_train

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (ROOT / "graphbuild", ROOT / "train" / "graphbuild_train")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def run_in(wheel: Path, folder: Path, code: str) -> str:
    """What `code` prints in a Python that has the wheel and its dependencies, away from the checkout."""
    env = {**os.environ, "PYTHONPATH": str(wheel)}
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_the_wheel_holds_both_packages_and_their_data_and_nothing_else(wheel: Path) -> None:
    expected = {
        f"{package.name}/{file.relative_to(package).as_posix()}"
        for package in PACKAGES
        for file in package.rglob("*")
        if file.suffix in {".py", ".yaml", ".html", ".css", ".js", ".svg"} or file.name == "py.typed"
    }
    expected |= {f"graphbuild/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / "pipelines").rglob("*.yaml")}
    found = {file.relative_to(wheel).as_posix() for file in wheel.rglob("*") if file.is_file()}
    assert {name for name in found if ".dist-info/" not in name} == expected
    assert {"graphbuild/py.typed", "graphbuild_train/py.typed", "graphbuild/tasks/paths/graph200k.yaml"} <= expected
    assert {"graphbuild/view/templates/item.html", "graphbuild/view/static/style.css"} <= expected


@pytest.mark.slow
def test_the_wheel_finds_its_data_by_name(wheel: Path, tmp_path: Path) -> None:
    code = (
        "import graphbuild, graphbuild_train, graphbuild.tasks.paths\n"
        "import graphbuild.pipeline as p, graphbuild_train.recipes as r\n"
        "print(graphbuild.__file__, graphbuild_train.__file__, p.pipeline_file('sample'), sep='\\n')\n"
        "print(*graphbuild.tasks.paths.shipped(), *p.pipeline_names(), *r.recipe_names())"
    )
    *files, names = run_in(wheel, tmp_path, code).splitlines()
    assert all(Path(file).is_relative_to(wheel) for file in files)
    assert {"graph200k", "graph200k_released", "sample", "subjects200k", "visualcloze_fill"} <= set(names.split())


@pytest.mark.slow
def test_the_wheel_has_a_command_and_a_licence(wheel: Path) -> None:
    (info,) = wheel.glob("*.dist-info")
    assert info.name == f"graphbuild-{graphbuild.__version__}.dist-info"
    assert "graphbuild = graphbuild.cli:main" in (info / "entry_points.txt").read_text()
    assert "License-Expression: Apache-2.0" in (info / "METADATA").read_text()
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("module", [graphbuild, graphbuild_train], ids=lambda module: module.__name__)
def test_public_names_are_there(module: object) -> None:
    names = module.__all__  # type: ignore[attr-defined]
    assert len(set(names)) == len(names) and set(names) <= set(dir(module))
    assert [name for name in names if getattr(module, name, None) is None] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'grph'"):
        import_module("graphbuild").grph  # noqa: B018


def test_every_pin_is_exact_and_covers_what_pyproject_asks_for() -> None:
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pinned[canonicalize_name(name)] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [Requirement(text) for group in groups for text in group]
    for need in (need for need in wanted if need.name != "graphbuild"):
        assert need.specifier.contains(pinned.get(canonicalize_name(need.name), "none pinned")), need
