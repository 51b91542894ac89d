"""The shape of the house: imports point one way, the method knows no Ray, the command line answers at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import swav_ray

PACKAGE = Path(swav_ray.__file__).parent
# A part may import parts of a lower floor and itself. A new part needs a place here.
FLOORS = {
    "errors": 0,
    "yaml_files": 1,
    "config_sections": 1,
    "config": 2,
    "recipes": 2,
    "swav": 3,
    "data": 4,
    "evaluate": 4,
    "train": 5,
    "report": 6,
    "tune": 7,
    "model_card": 6,
    "export": 7,
    "share": 7,
    "doctor": 7,
    "jobs": 8,
    "cli": 9,
    "__main__": 10,
}
MODULES = {
    ".".join(("swav_ray", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
LONGEST_FILE = 350


def part_of(module: str) -> str:
    """``swav_ray.tune.study`` -> ``tune``; the package itself -> an empty name."""
    return [*module.split("."), ""][1]


def imports_of(module: str, *, lazy: bool) -> set[str]:
    """Modules that ``module`` imports, with ``lazy`` also those inside functions and under TYPE_CHECKING."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(MODULES[module].read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are written in full here"
            base = node.module or ""
            # `from package import name`: name is a module or something inside the package.
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
        elif not lazy and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ):
            continue
        pending += ast.iter_child_nodes(node)
    return found


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.split(".")[0] == "swav_ray"}


def test_every_part_has_a_floor() -> None:
    parts = {part_of(module) for module in MODULES} - {""}
    assert parts <= set(FLOORS), f"give these parts a floor: {sorted(parts - set(FLOORS))}"


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name)])
def test_imports_point_one_way(module: str) -> None:
    here = part_of(module)
    for name in sorted(ours(imports_of(module, lazy=True))):
        there = part_of(name)
        if there:  # the package itself holds only its version
            assert there == here or FLOORS[there] < FLOORS[here], f"{module} imports {name}: the arrow points the other way"


def test_the_package_itself_imports_its_parts_only_when_asked() -> None:
    assert not ours(imports_of("swav_ray", lazy=False))
    assert {part_of(name) for name in ours(imports_of("swav_ray", lazy=True))} <= {"export"}


def test_no_cycle_among_imports_at_module_level() -> None:
    graph = {module: ours(imports_of(module, lazy=False)) - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("modules import each other: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name) in ("swav", "evaluate")])
def test_the_method_and_the_evaluation_name_no_ray(module: str) -> None:
    assert "ray" not in {name.split(".")[0] for name in imports_of(module, lazy=True)}


def loaded_by(code: str, *names: str) -> set[str]:
    """Which of ``names`` a fresh process has loaded after ``code``."""
    script = f"import sys\n{code}\nprint(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_method_and_the_evaluation_load_no_ray() -> None:
    assert loaded_by("import swav_ray.swav, swav_ray.evaluate, swav_ray.evaluate.features", "ray", "torch") == {"torch"}


def test_the_command_line_loads_nothing_heavy() -> None:
    heavy = ("torch", "torchvision", "ray", "optuna", "pandas", "numpy", "pyarrow", "s3fs", "pydantic", "yaml", "PIL")
    assert loaded_by("import swav_ray.cli", "typer", *heavy) == {"typer"}


def test_the_configuration_loads_no_torch() -> None:
    assert loaded_by("import swav_ray.config", "pydantic", "torch", "ray", "optuna", "numpy") == {"pydantic"}


@pytest.mark.parametrize("module", MODULES)
def test_no_file_grows_too_long(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{MODULES[module]} has {lines} lines: split it by its jobs"
