"""Data flows from top to bottom: a package imports itself and the ones above it, never one below."""

import ast
from pathlib import Path

import pytest

import mesascope

ROOT = Path(mesascope.__file__).parent
LAYERS = (
    *("errors", "environment", "config", "files", "figures", "claims", "tasks", "predictor", "ops", "nn"),
    *("learners", "constructions", "training", "runs", "uncover", "report", "experiments", "benchmarks"),
    *("doctor", "cli"),
)


def imported_layers(path: Path) -> set[str]:
    """The packages directly under mesascope that the file imports anywhere, also inside functions."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules |= set(names) if node.module == "mesascope" else {str(node.module)}
    return {module.split(".")[1] for module in modules if module.startswith("mesascope.")}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_up(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    allowed = set(LAYERS) if layer in ("__init__", "__main__") else set(LAYERS[: LAYERS.index(layer) + 1])
    assert imported_layers(path) <= allowed
