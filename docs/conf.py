"""Sphinx' settings. The sources are those that ``generate.py`` writes."""

import cortado

project = "cortado"
author = "the cortado developers"
project_copyright = "BSD-3-Clause"
version = release = cortado.__version__

extensions = ["sphinx.ext.mathjax"]
html_theme = "furo"
html_title = f"cortado {version}"
html_copy_source = False
highlight_language = "none"
smartquotes = False  # -- is an option's
