"""How the package is built: imports point one way, only the engine knows accelerate, files and functions stay small."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "accel_train"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES = 330
MAX_FUNCTION_LINES = 70

# From the ground up. A part imports parts of lower storeys only, never its neighbours. `config.schema` and the like are
# in the part `config`; a part is a folder or a file of the package.
STOREYS = [
    {"errors", "json_text", "visible", "rank_names", "whereabouts", "quiet", "interrupts"},
    {"config", "ledger", "run_lock", "writable"},
    {"data", "models", "losses", "metrics", "optim", "run_log", "progress", "stopping", "prediction_file"},
    {"engine", "tasks", "randomness", "phases", "inject", "first_nonfinite", "light_graphs"},
    {"batch_loss"},
    {"checkpoint", "step", "evaluate", "advice", "preflight"},
    {"resume"},
    {"run"},
    {"watch", "agreement", "gradients", "watchdog"},
    {"judge", "nonfinite"},
    {"set_up"},
    {"rollback"},
    {"train"},
    {"tools"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
STOREY = {part: number for number, parts in enumerate(STOREYS) for part in parts}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports at run time, inside functions too. Imports for type checks alone are left out."""
    nodes: list[ast.AST] = [tree(path)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            nodes += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            module = node.module or ""
            inner = [f"{module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else module for name in inner)
        else:
            nodes += ast.iter_child_nodes(node)


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def ids(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nimport torch.nn as nn\nfrom accel_train.config import load\n"
        "if TYPE_CHECKING:\n    import deepspeed\n"
        "def f():\n    from accel_train.errors import UserError\n"
    )
    found = {"typing", "torch.nn", "accel_train.config.load", "accel_train.errors"}
    assert set(imports(path)) == found


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_imports_point_one_way(path: Path) -> None:
    own = part_of(module_name(path))
    assert own == "" or own in STOREY, f"give {own} a storey in this test"
    for module in imports(path):
        other = part_of(module) if module.split(".")[0] == "accel_train" else ""
        if other and other != own:
            assert STOREY[other] < STOREY[own], f"{own} must not import {module}"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_only_the_engine_knows_accelerate(path: Path) -> None:
    if part_of(module_name(path)) != "engine":
        assert not {module.split(".")[0] for module in imports(path)} & {"accelerate", "deepspeed"}


def test_no_cycles() -> None:
    graph = {module_name(path): {name for name in imports(path) if name in MODULES} for path in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' → '.join(error.args[1])}")


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_files_and_functions_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_no_attribute_is_read_by_a_literal_name(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1]
            assert not isinstance(name, ast.Constant), f"line {node.lineno}: {node.func.id}(…, {ast.unparse(name)})"


def test_package_files_are_empty() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent != PACKAGE:
            assert path.read_text() == "", path
