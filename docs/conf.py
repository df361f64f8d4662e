# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Sphinx configuration."""

from importlib.metadata import version as installed_version

from torchgeo_clay.sensors import sensor_table

project = 'torchgeo_clay'
author = 'torchgeo_clay contributors'
copyright = '2026, torchgeo_clay contributors'
release = version = installed_version('torchgeo-clay')

extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.autosummary', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
exclude_patterns = ['_build', '_templates']
templates_path = ['_templates']

html_theme = 'pydata_sphinx_theme'
html_title = 'torchgeo_clay'
html_theme_options = {'show_prev_next': False, 'secondary_sidebar_items': ['page-toc']}
html_sidebars = {'index': [], 'sensors': []}

# The sensors page shows the table that the code uses.
myst_enable_extensions = ['colon_fence', 'dollarmath', 'substitution']
myst_substitutions = {'sensor_table': sensor_table()}
myst_heading_anchors = 3

# Tutorials are run when the site is built, and a cell that fails fails the build.
nb_execution_mode = 'auto'
nb_execution_raise_on_error = True
nb_execution_timeout = 600

# Every module has its page; an object is described where it is defined, not again where it is re-exported.
autosummary_generate = True
autosummary_imported_members = False
autodoc_typehints = 'signature'
autodoc_member_order = 'bysource'
napoleon_numpy_docstring = False
napoleon_use_ivar = True
