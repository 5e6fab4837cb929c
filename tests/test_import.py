"""Importing the package is cheap: heavy libraries wait until they are used."""

import subprocess
import sys

import pytest

HEAVY = ("matplotlib", "plotly", "jinja2", "scipy", "ray", "pandas", "tyro", "rich")
LIGHT = (
    "mesascope",
    "mesascope.tasks",
    "mesascope.nn",
    "mesascope.ops",
    "mesascope.learners",
    "mesascope.constructions",
    "mesascope.training.loop",
    "mesascope.uncover",
)


def run(code: str) -> str:
    """The standard output of a fresh interpreter, which sees the package as users do: without type checking."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout


def test_heavy_libraries_are_not_imported() -> None:
    loaded = run(f"import sys, {', '.join(LIGHT)}; print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded.strip() == "[]"


@pytest.mark.parametrize("name", LIGHT)
def test_public_names_exist(name: str) -> None:
    import importlib

    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        assert hasattr(module, public), public


def test_importing_draws_no_random_number_and_sets_no_thread_count() -> None:
    code = (
        "import torch; before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype();"
        f"import {', '.join(LIGHT)};"
        "after = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype();"
        "print(bool((before[0] == after[0]).all()), before[1:] == after[1:])"
    )
    assert run(code).strip() == "True True"


def test_the_package_alone_does_not_import_torch() -> None:
    code = "import sys, mesascope; print('torch' in sys.modules, mesascope.MesaState.__name__, 'torch' in sys.modules)"
    assert run(code).strip() == "False MesaState True"


def test_attention_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch; from mesascope import mesa_attention; x = torch.ones(1, 3, 1, 2, requires_grad=True);"
        "mesa_attention(x, x, x, torch.ones(1)).sum().backward(); print('torch._dynamo' in sys.modules)"
    )
    assert run(code).strip() == "False"
