"""The import rules: one way between packages, no cycles, Ray at the edge only, a core that needs four libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("tolbuild", "tolserve", "cluster")
ALLOWED = {"tolbuild": PACKAGES[:1], "tolserve": PACKAGES[:2], "cluster": PACKAGES}

CORE = (
    "tolbuild.bench", "tolbuild.build", "tolbuild.checkpoint", "tolbuild.compress", "tolbuild.config", "tolbuild.model",
    "tolbuild.plan", "tolbuild.rows", "tolbuild.table", "tolbuild.worker", "tolserve.bench.gpu", "tolserve.engine",
    "tolserve.memory", "tolserve.native", "tolserve.transport",
)  # fmt: skip
"""What must import where only torch, numpy, pyarrow and safetensors are installed; folders with all that is in them."""

NEEDS_A_GPU = ("tolserve.engine.graphs", "tolserve.engine.paged_triton")
COMMANDS = ("tolbuild.checkpoint.convert",)
"""Command lines that lie beside what they call; nothing imports them."""


@dataclass(frozen=True)
class Import:
    """One import of a module of ours: what it names, and whether it runs when the importing module is imported."""

    target: str
    at_import: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))}


@cache
def imports(module: str) -> list[Import]:
    return list(_imports(ast.parse(MODULES[module].read_text()), at_import=True))


def _imports(node: ast.AST, *, at_import: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, at_import) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0 and child.module, "imports are absolute"
            for alias in child.names:
                inner = f"{child.module}.{alias.name}"
                yield Import(inner if inner in MODULES else child.module, at_import)
        elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for part in child.body:
                yield from _imports(ast.Module([part], []), at_import=False)
            for part in child.orelse:
                yield from _imports(ast.Module([part], []), at_import=at_import)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, at_import=at_import and not inside)


def top(name: str) -> str:
    return name.partition(".")[0]


def test_packages_import_one_way() -> None:
    back = [
        f"{module} imports {one.target}"
        for module in MODULES
        for one in imports(module)
        if top(one.target) in PACKAGES and top(one.target) not in ALLOWED[top(module)]
    ]
    assert not back


def test_nothing_imports_a_module_that_is_not_there() -> None:
    lost = [
        f"{module} imports {one.target}"
        for module in MODULES
        for one in imports(module)
        if top(one.target) in PACKAGES and one.target not in MODULES
    ]
    assert not lost


def test_modules_have_no_cycle() -> None:
    graph = {
        module: {one.target for one in imports(module) if one.at_import and one.target in MODULES} - {module}
        for module in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_only_the_edge_imports_ray() -> None:
    users = {module for module in MODULES if any(top(one.target) == "ray" for one in imports(module))}
    assert not [module for module in users if top(module) != "cluster" and ".on_ray" not in module]


def test_the_table_format_is_a_leaf() -> None:
    for module in MODULES:
        if module.startswith("tolbuild.table"):
            foreign = {one.target for one in imports(module) if top(one.target) in ("torch", "ray", *PACKAGES)}
            assert all(target.startswith("tolbuild.table") for target in foreign), (module, foreign)


def test_the_core_does_not_import_the_edge() -> None:
    edge = ("tolbuild.run", "tolbuild.on_ray", "tolserve.run", "tolserve.on_ray", "tolserve.app", "tolserve.openai_api")
    for module in MODULES:
        if in_core(module):
            assert not [one.target for one in imports(module) if one.at_import and one.target.startswith(edge)], module


def in_core(module: str) -> bool:
    return any(module == name or module.startswith(name + ".") for name in CORE)


LIGHT = """
import importlib, sys
import numpy, pyarrow, safetensors, safetensors.torch, torch

allowed = set(sys.stdlib_module_names) | {"tolbuild", "tolserve", "numpy", "pyarrow", "safetensors", "torch"}
loaded = {name.partition(".")[0] for name in sys.modules}

class NothingElse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed | loaded:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

for name in ("fsspec", "ray", "zarr", "tyro", "s3fs", "obstore", "rich", "tokenizers", "google_crc32c"):
    for module in [module for module in sys.modules if module == name or module.startswith(name + ".")]:
        del sys.modules[module]
    loaded.discard(name)
sys.meta_path.insert(0, NothingElse())
for module in sys.argv[1:]:
    importlib.import_module(module)
"""


def test_the_core_imports_with_four_libraries() -> None:
    modules = [module for module in MODULES if in_core(module) and module not in NEEDS_A_GPU + COMMANDS]
    command = [sys.executable, "-c", LIGHT, *modules]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


def test_nothing_reads_the_environment_at_import() -> None:
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            text = ast.unparse(node)
            assert "os.environ" not in text and "os.getenv" not in text, f"{module} reads the environment at import"


def test_every_package_says_what_it_is() -> None:
    for module, path in MODULES.items():
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text())), f"{module} has no docstring"
