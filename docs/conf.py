"""The site: `python -m sphinx -W --keep-going -b html docs docs/_build/html`.

Nothing is fetched while it is built, and nothing by the pages: no scripts, fonts or styles of
others. Notebooks are shown as they were committed and never run here; CI runs them.
"""

import re
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

project = "regap_interp"
author = "the regap_interp contributors"
copyright = "the regap_interp contributors, Apache-2.0"
version = release = version_of("regap-interp")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
default_role = "py:obj"  # `name` in a docstring links to that name if it has a page
smartquotes_action = "D"  # dashes; what stands in quotes is often code

html_theme = "furo"
html_title = "regap_interp"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
pygments_style, pygments_dark_style = "friendly", "github-dark"

nb_execution_mode = "off"
myst_heading_anchors = 3

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
napoleon_google_docstring, napoleon_numpy_docstring = True, False


def as_restructured_text(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings are plain text; where that means another thing to Sphinx, say it its way."""
    found: list[str] = []
    if what in ("attribute", "data", "property"):
        found.append("\\")  # nothing, or napoleon takes what stands before a colon for a type
    in_section = in_code = False
    for line in lines:
        indented = line.startswith("    ")
        if line.strip() and not indented:
            in_section = line.rstrip() in ("Args:", "Raises:", "Returns:", "Yields:")
            in_code = False
        elif indented and not (in_section or in_code) and found and not found[-1].strip():
            found += [".. code-block:: python", ""]  # not a quotation
            in_code = True
        found.append(line if in_code else re.sub(r"(`[^`\s][^`]*`)(?=\w)", r"\1\\ ", line))
    lines[:] = found


def bring_notebooks(app: Any) -> None:
    """Copy them to where Sphinx can see them; those of the repository stand beside `docs`."""
    copies = Path(app.srcdir, "notebooks")
    wanted = {
        one.name: one.read_bytes() for one in (copies.parents[1] / "notebooks").glob("*.ipynb")
    }
    copies.mkdir(exist_ok=True)
    for one in copies.glob("*.ipynb"):
        if one.name not in wanted:
            one.unlink()
    for name, content in wanted.items():
        copy = copies / name
        if not copy.exists() or copy.read_bytes() != content:
            copy.write_bytes(content)


def links_of_the_site(app: Any, docname: str, content: list[str]) -> None:
    """Links between pages and notebooks are right in the repository, and become right here."""
    if docname.startswith("notebooks/"):
        content[0] = content[0].replace("](../docs/", "](../")
    else:
        content[0] = content[0].replace("](../notebooks/", "](notebooks/")


def setup(app: Any) -> None:
    """Connect the above, before napoleon reads docstrings."""
    app.connect("builder-inited", bring_notebooks)
    app.connect("source-read", links_of_the_site)
    app.connect("autodoc-process-docstring", as_restructured_text, priority=100)
