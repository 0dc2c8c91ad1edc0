"""The site of the pages and the docstrings: `make docs`."""

import sys
from pathlib import Path

import vdiff

sys.path.append(str(Path(__file__).parent / "_ext"))

project = "vdiff"
author = "The vdiff authors"
copyright = author
version = release = vdiff.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "docstrings",
    "sphinx.ext.viewcode",
    "mathml",
    "code_links",
    "commands",
    "text",
]
exclude_patterns = ["_build"]
default_role = "code"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the stored outputs are shown

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False  # a method that overrides a documented one
maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"vdiff {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
