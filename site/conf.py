"""Settings of Sphinx for the static site: nothing is run, and nothing is fetched, then or later."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_project = tomllib.loads((ROOT / "pyproject.toml").read_text())

project = "kd_lab"
version = release = _project["project"]["version"]
author = "the authors of kd_lab"
copyright = "the authors of kd_lab, MIT licence; MNIST: CC BY-SA 3.0"
html_title = "kd_lab"
html_last_updated_fmt = None

extensions = ["myst_nb", "sphinx.ext.autodoc", "notebooks.site.mathml", "notebooks.site.reference"]
nitpicky = False
show_warning_types = True
default_role = "code"
smartquotes = False  # quotes stand around values

nb_execution_mode = "off"  # they are shown as they were saved
nb_ipywidgets_js = {}  # else pages would load scripts from elsewhere
nb_merge_streams = True
nb_code_prompt_show = "Show the code that checks this"
nb_code_prompt_hide = "Hide the code that checks this"
myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

autodoc_inherit_docstrings = False  # torch's are not ours
autodoc_preserve_defaults = True  # else addresses of functions would be written
autodoc_typehints_format = "short"
add_module_names = False
maximum_signature_line_length = 70
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "a11y-light"
pygments_dark_style = "a11y-dark"
html_theme_options = {"top_of_page_buttons": []}
_address = _project["tool"]["kd_lab"]["repository"]
if _address:
    html_theme_options["footer_icons"] = [{"name": "Source", "url": _address, "html": "Source", "class": ""}]
