"""Who may import whom, where heavy libraries may be named, and how large a file may get."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from graphbuild.annotators import BUILTIN

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    path.relative_to(folder.parent): path
    for folder in (ROOT / "graphbuild", ROOT / "train" / "graphbuild_train")
    for path in sorted(folder.rglob("*.py"))
}
EVERY_FILE = [
    path.relative_to(ROOT)
    for folder in ("graphbuild", "train", "pipelines", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "__pycache__" not in path.parts
]
"""Those of the packages, and what is written in Python beside them."""

BASE = {"contracts", "errors", "config", "kinds", "hashing", "images"}
MAY_IMPORT: dict[str, set[str]] = {
    "contracts": set(),
    "errors": set(),
    "config": {"errors"},
    "images": {"contracts", "config", "errors"},
    "kinds": {"contracts", "config", "errors", "images"},
    "hashing": {"contracts", "errors", "kinds"},
    "store": BASE,
    "sources": BASE | {"store"},
    "models": BASE,
    "annotators": BASE | {"models"},
    "tasks": BASE | {"store"},
    "data": BASE | {"store", "tasks"},
    "view": BASE | {"store", "tasks"},
    "engine": BASE | {"store", "sources", "annotators", "models"},
    "pipeline": BASE | {"store", "tasks", "sources", "annotators"},
    "cli": BASE | {"store", "tasks", "sources", "annotators", "models", "engine", "pipeline", "view"},
}
"""Room or module of graphbuild -> what it may import of ours, besides itself and the version."""

TRAINER: tuple[set[str], ...] = (
    {"config"},
    {"batch", "disk_cache", "pissa", "trackers"},
    {
        "objective",
        "lora",
        "quantise",
        "optimiser",
        "latent_cache",
        "model_setup",
        "recipes",
        "resume",
        "memory",
        "planned",
    },
    {"forecast", "sharding"},
    {"bases", "task_list"},
    {"validate"},
    {"export", "preflight", "journal", "checkpoint"},
    {"plan", "cards", "initial", "caches", "metrics"},
    {"trainer", "sampling"},
    {"evaluation"},
    {"cli"},
    {"cli_evaluate"},
    {"__main__"},
)
"""Floors of graphbuild_train, lowest first: a module or folder imports from floors below, and from its own folder."""

TRAINER_READS = BASE | {"data", "tasks", "store", "pipeline", "annotators", "models", ""}
"""What the trainer may import of graphbuild; "" is the public face itself."""

ONLY_IN: dict[str, tuple[str, ...]] = {
    "ray": ("graphbuild/engine/executors/",),
    "torch": ("graphbuild/data/", "graphbuild/annotators/", "graphbuild/models/", "graphbuild_train/"),
    "yaml": ("graphbuild/config/", "graphbuild/store/card.py", "graphbuild_train/export/card.py"),
    "jinja2": ("graphbuild/view/",),
    "starlette": ("graphbuild/view/",),
    "uvicorn": ("graphbuild/view/",),
    "typer": ("graphbuild/cli/", "graphbuild_train/cli"),
    "graphbuild_train": ("graphbuild_train/",),
}
"""Package -> the files, or folders, that may import it."""

NEVER = {"train", "tests", "schemas", "pipelines", "docs"}
"""Folders of the checkout: they can be imported in development and are not there for users."""


def imports(tree: ast.AST, *, when_imported: bool = False) -> Iterator[str]:
    """Dotted names that a file imports; with `when_imported` only those that importing the file loads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (when_imported and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or for_types(node))):
            yield from imports(node, when_imported=when_imported)


def for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def ours(names: Iterator[str]) -> set[str]:
    """The modules and subpackages of graphbuild among imported names; "" is the public face itself."""
    found = (name.partition(".") for name in names)
    return {rest.split(".")[0] for package, _, rest in found if package == "graphbuild"} - {"__version__"}


LIBRARY = [name for name in FILES if name.parts[0] == "graphbuild" and name != Path("graphbuild/__init__.py")]


@pytest.mark.parametrize("name", LIBRARY, ids=str)
def test_imports_point_down(name: Path) -> None:
    layer = name.with_suffix("").parts[1]
    assert layer in MAY_IMPORT, f"{name}: say in MAY_IMPORT what it may import"
    assert ours(imports(parsed(FILES[name]))) <= MAY_IMPORT[layer] | {layer}


def test_the_public_face_loads_nothing_of_ours() -> None:
    assert ours(imports(parsed(FILES[Path("graphbuild/__init__.py")]), when_imported=True)) == set()


def test_the_table_has_no_circle() -> None:
    below: set[str] = set()
    while ready := {layer for layer, allowed in MAY_IMPORT.items() if layer not in below and allowed <= below}:
        below |= ready
    assert below == set(MAY_IMPORT)


@pytest.mark.parametrize("name", [name for name in FILES if name.parts[0] == "graphbuild_train"], ids=str)
def test_imports_of_the_trainer_point_down(name: Path) -> None:
    imported = list(imports(parsed(FILES[name])))
    assert ours(iter(imported)) <= TRAINER_READS
    if (layer := name.with_suffix("").parts[1]) == "__init__":
        return
    (floor,) = [number for number, floor in enumerate(TRAINER) if layer in floor]
    read = {dotted.split(".")[1] for dotted in imported if dotted.startswith("graphbuild_train.")}
    modules = set().union(*TRAINER)
    assert read & modules <= set().union(*TRAINER[:floor]) | {layer}


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {".".join(name.with_suffix("").parts).removesuffix(".__init__"): path for name, path in FILES.items()}
    reads = {name: {home for dotted in imports(parsed(path)) if (home := module_of(dotted, modules)) != name}
             for name, path in modules.items()}  # fmt: skip
    reads.pop("graphbuild")  # the public face, loaded by need
    while leaves := {name for name, targets in reads.items() if not targets & set(reads)}:
        reads = {name: targets for name, targets in reads.items() if name not in leaves}
    assert reads == {}


def module_of(dotted: str, modules: Mapping[str, Path]) -> str:
    """The file behind a dotted name; "" if it is not ours."""
    parts = dotted.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in modules), "")


def test_the_folder_of_annotators_holds_one_file_each() -> None:
    """What several of them need is a base class, or belongs to the models."""
    bases = {"base", "testing", "vlm"}
    files = {name.stem: parsed(path) for name, path in FILES.items() if name.parent == Path("graphbuild/annotators")}
    annotators = {target.partition(":")[0].rpartition(".")[2] for target in BUILTIN.values()}
    assert files.keys() - {"__init__"} == annotators | bases
    for name in annotators:
        read = {dotted.split(".")[2] for dotted in imports(files[name]) if dotted.startswith("graphbuild.annotators.")}
        assert read <= bases, name


def test_few_rooms() -> None:
    assert len({name.parts[1] for name in LIBRARY}) <= 16


@pytest.mark.parametrize("name", LIBRARY, ids=str)
def test_the_core_install_is_enough_to_import(name: Path) -> None:
    """Guards against `graphbuild models`, or a graph without models, that needs torch."""
    loaded = {imported.split(".")[0] for imported in imports(parsed(FILES[name]), when_imported=True)}
    assert name.parts[1] == "data" or loaded & {"torch", "torchvision", "transformers", "diffusers"} == set()


@pytest.mark.parametrize("name", FILES, ids=str)
def test_heavy_and_private_packages_stay_where_they_belong(name: Path) -> None:
    packages = {imported.split(".")[0] for imported in imports(parsed(FILES[name]))}
    assert packages & NEVER == set()
    misplaced = {p for p, places in ONLY_IN.items() if p in packages and not str(name).startswith(places)}
    assert misplaced == set()


@pytest.mark.parametrize("name", EVERY_FILE, ids=str)
def test_files_are_small_and_named_by_what_they_hold(name: Path) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 400
    assert name.stem not in {"utils", "util", "common", "helpers", "misc"}


@pytest.mark.parametrize("module", ["graphbuild", "graphbuild.cli", "graphbuild.store.graph", "graphbuild_train"])
def test_heavy_libraries_are_not_loaded_before_they_are_used(module: str) -> None:
    code = f"import sys, {module}; print(*({{'torch', 'ray', 'cv2', 'transformers', 'diffusers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
