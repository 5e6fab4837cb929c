"""Sphinx configuration: `make docs` builds the site into docs/_build."""

import importlib.metadata
import re
from typing import Any

project = "mesascope"
release = importlib.metadata.version("mesascope")
copyright = "the mesascope authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "results/why"]
html_theme = "furo"
html_title = f"mesascope {release}"
html_show_sphinx = False

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

# docstrings quote code in single backticks
default_role = "code"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_ivar = True

_QUOTED = re.compile(r"(`+[^`]+`+)")
_SPECIAL = re.compile(r"([*|]|(?<=\w)_(?!\w))")


def escape(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings write W* and s_t as the paper does: outside of quoted code, no character has a meaning of its own."""
    for index, line in enumerate(lines):
        parts = _QUOTED.split(line)
        lines[index] = "".join(part if part.startswith("`") else _SPECIAL.sub(r"\\\1", part) for part in parts)


def setup(app: Any) -> None:
    """Connect `escape` so that it comes before napoleon's reading of the sections."""
    app.connect("autodoc-process-docstring", escape, priority=400)
