"""Which way the imports run: read from the sources, so that a module that nobody imports counts too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools.bundles import KIT, names

GROUND = (
    "errors",
    "values",
    "bfloat16",
    "files",
    "memory",
    "progress",
    "command_line",
    "configs",
    "expressions",
    "run",
    "version",
)
# what each room of bundlekit may import, besides itself
ALLOWED = {
    "errors": (),
    "files": ("errors",),
    "memory": (),
    "progress": (),
    "losses": (),
    "unet": (),
    "bfloat16": (),
    "class_weights": ("errors", "cases"),
    "values": (),
    "command_line": ("errors", "values"),
    "configs": ("errors", "values"),
    "expressions": ("errors",),
    "version": ("errors",),
    "run": ("errors", "memory", "command_line", "version"),
    "images": ("errors", "files"),
    "label_maps": (*GROUND, "images", "cases"),
    "cases": (*GROUND, "images"),
    "weights": (*GROUND,),
    "patches": (*GROUND, "images", "cases"),
    "scores": (*GROUND, "images", "cases"),
    "training": (*GROUND, "cases", "weights"),
    "inference": (*GROUND, "images", "cases", "weights"),
    "brats": (*GROUND, "images", "cases", "patches", "scores", "weights", "inference"),
    "virtual": (*GROUND, "images", "cases", "patches", "label_maps", "brats"),
    "report": (*GROUND, "images", "cases"),
    "preparation": (*GROUND, "images", "cases", "brats"),
    "cohort": (*GROUND, "images", "cases", "weights", "inference", "report"),
}


def imported(file: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, at its top or inside functions, by statement or by string."""
    package = ".".join(file.with_suffix("").relative_to(root_of(file)).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__", "find_spec", "locate"):
                yield str(node.args[0].value)


def root_of(file: Path) -> Path:
    """The folder that has to be on the path for a file's package."""
    return file.parents[len(file.relative_to(ROOT / "bundles").parts) - 2] if "bundles" in file.parts else ROOT


def strings(file: Path) -> Iterator[str]:
    """Strings of a file that are no docstrings."""
    tree = ast.parse(file.read_text())
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, owners) and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def ours(file: Path) -> set[str]:
    """Of the imported modules, those of this project."""
    return {name for name in imported(file) if name.split(".")[0] in ("bundlekit", "tools", "tests", *names())}


def files_of(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("bundle", names())
def test_a_bundle_imports_bundlekit_alone(bundle: str) -> None:
    for file in files_of(ROOT / "bundles" / bundle / bundle):
        others = {name for name in ours(file) if name.split(".")[0] not in (bundle, "bundlekit")}
        assert not others, f"{file} imports {others}"


def test_tools_import_bundlekit_alone() -> None:
    for file in files_of(ROOT / "tools"):
        others = {name for name in ours(file) if name.split(".")[0] not in ("tools", "bundlekit")}
        assert not others, f"{file} imports {others}"


def test_bundlekit_knows_no_bundle_and_no_tool() -> None:
    for file in files_of(KIT):
        others = {name for name in ours(file) if name.split(".")[0] != "bundlekit"}
        assert not others, f"{file} imports {others}"
        named = {text for text in strings(file) if text.split(".")[0] in names()}
        assert not named, f"{file} names {named}"


def test_the_rooms_of_bundlekit_build_on_each_other_in_one_direction() -> None:
    for file in files_of(KIT):
        room = file.relative_to(KIT).with_suffix("").parts[0]
        if room == "__init__":  # offers what all rooms have
            continue
        assert room in ALLOWED, f"{file}: a room that the table above does not have"
        parts = {tuple(name.split(".")) for name in ours(file)}
        assert ("bundlekit",) not in parts or room == "__init__", f"{file} imports bundlekit itself, which imports all"
        used = {part[1] for part in parts if len(part) > 1 and part[1] in ALLOWED} - {room}
        assert used <= set(ALLOWED[room]), f"{file} imports {sorted(used - set(ALLOWED[room]))}"


def test_the_table_has_no_circle() -> None:
    order: list[str] = []
    while len(order) < len(ALLOWED):
        free = [room for room, below in ALLOWED.items() if room not in order and set(below) <= set(order)]
        assert free, f"a circle among {set(ALLOWED) - set(order)}"
        order += free
