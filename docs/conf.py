"""Sphinx's settings.  Builds need no network: the inventories of other projects are kept beside this file."""

project = "trickle"
author = "the trickle contributors"
copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "trickle"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # an "Attributes:" section does not describe them a second time

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", "inventories/python.inv"),
    "trio": ("https://trio.readthedocs.io/en/stable", "inventories/trio.inv"),
}

nitpick_ignore_regex = [
    (r"py:.*", r"trickle\._\w+\.[A-Z](_co|_contra)?"),  # type variables have no page
    (r"py:.*", r"StrOrBytesPath|Progress"),
    (r"py:.*", r"rich\..*"),  # and rich's inventory is not kept here
]
