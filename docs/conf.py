"""The site: `sphinx-build -W --keep-going -b html docs docs/_build`. Nothing is fetched from the network."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import _gallery  # noqa: E402

import paysage_jax  # noqa: E402

project = "paysage_jax"
author = "the authors of paysage_jax"
project_copyright = author
version = release = paysage_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "_docstrings",
]
exclude_patterns = ["_build", "_examples", "gallery/**/*.md5", "README.md"]

# --- text --------------------------------------------------------------------------------------------

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
default_role = "py:obj"  # what docstrings mean by `name`
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # as they are written
autodoc_type_aliases = {name: f"paysage_jax.extend.{name}" for name in ("Number", "Schedule")}
autodoc_type_aliases |= {name: name for name in ("Params", "Updates", "State", "Metric", "Batch")}
python_use_unqualified_type_names = True
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_use_param = False  # one line of a docstring may be about several arguments
python_maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"

# Inventories are in the repository: a build without the network has the same links.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", "inventories/python.inv"),
    "jax": ("https://docs.jax.dev/en/latest", "inventories/jax.inv"),
}

# --- gallery -----------------------------------------------------------------------------------------

_gallery.write_examples()
sphinx_gallery_conf = {
    "examples_dirs": "_examples",
    "gallery_dirs": "gallery",
    "filename_pattern": _gallery.EXECUTED,
    "within_subsection_order": "_gallery.position",
    "reset_argv": "_gallery.arguments",
    "reset_modules": ("_gallery.reset",),
    "image_scrapers": ("_gallery",),
    "default_thumb_file": str(DOCS / "_static/no_picture.png"),
    "thumbnail_size": (720, 260),
    "abort_on_example_error": True,
    "backreferences_dir": "gallery/backreferences",
    "doc_module": ("paysage_jax",),
    "download_all_examples": False,
    "notebook_extensions": set(),
    "show_signature": False,
    "write_computation_times": False,
}

# --- pages -------------------------------------------------------------------------------------------

pygments_dark_style = "github-dark"  # in the default, names of modules look like links
html_theme = "furo"  # a page of it is a tenth of one of pydata-sphinx-theme
html_title = "paysage_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["llms.txt"]
html_copy_source = False
html_show_sphinx = False
html_show_sourcelink = False

# KaTeX and its fonts, from npm, only on pages with equations; Sphinx leaves the TeX as MathJax wants it.
mathjax_path = "katex/set_math.js"
mathjax_options = {"defer": "defer"}
myst_update_mathjax = False
