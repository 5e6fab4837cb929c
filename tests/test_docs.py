"""The examples of the documentation run as printed, block after block."""

import importlib
import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"
WITH_EXAMPLES = ("mesa_layer.md", "your_model.md")


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name: str) -> None:
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)
    assert blocks
    exec(compile("\n".join(blocks), name, "exec"), {})


def test_pages_of_the_api_name_modules_that_exist() -> None:
    pages = sorted((DOCS / "api").glob("*.md"))
    named = [name for page in pages for name in re.findall(r"automodule:: (\S+)", page.read_text())]
    assert {"mesascope.tasks", "mesascope.nn", "mesascope.learners", "mesascope.uncover"} <= set(named)
    assert all(importlib.import_module(name).__doc__ for name in named)
    listed = (DOCS / "api" / "index.md").read_text()
    assert all(f"\n{page.stem}\n" in listed for page in pages if page.stem != "index")
