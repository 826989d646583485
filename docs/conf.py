"""Sphinx settings of the documentation: `make docs` builds it, with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[part] / name) for part, name in ((1, "."), (1, "passes"), (0, "."))]

from axformer_onnx.version import __version__  # noqa: E402  of this folder, whatever is installed

project = "axformer-onnx"
release = version = __version__
copyright = "the axformer-onnx authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click", "sphinx_copybutton", "from_code"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4  # links to #headings, as the repository's browser has them
smartquotes = False  # it would make one dash of the two of an option
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"axformer-onnx {__version__}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
