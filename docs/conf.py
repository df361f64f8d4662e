# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Sphinx configuration."""

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

from torchgeo_clay.sensors import sensor_table

sys.path.insert(0, str(Path(__file__).parent / 'scripts'))

from list_errors import list_errors, markdown
from list_options import configs, options

project = 'torchgeo_clay'
author = 'torchgeo_clay contributors'
copyright = '2026, torchgeo_clay contributors'
release = version = installed_version('torchgeo-clay')

extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.autosummary', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
# What is generated as Markdown is a part of a page, not a page.
exclude_patterns = ['_build', '_templates', 'generated/*.md']
templates_path = ['_templates']

html_theme = 'pydata_sphinx_theme'
html_title = 'torchgeo_clay'
html_theme_options = {'show_prev_next': False, 'secondary_sidebar_items': ['page-toc'], 'navbar_center': []}
html_sidebars = {'**': ['globaltoc.html'], 'index': []}

# The sensors page shows the table that the code uses.
myst_enable_extensions = ['colon_fence', 'deflist', 'dollarmath', 'substitution']
myst_substitutions = {'sensor_table': sensor_table()}
myst_heading_anchors = 3

# Messages and code are shown with the quotes they have.
smartquotes = False

# Tutorials are run when the site is built, and a cell that fails fails the build. On one thread their figures are the
# same on any number of cores, and tiny models are as fast, or faster where the cores have other work.
os.environ.setdefault('OMP_NUM_THREADS', '1')
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


def write_generated(app: Sphinx) -> None:
    """Write what pages include: the arguments of tasks, datamodules and callbacks, and every message of the package."""
    folder = Path(app.srcdir) / 'generated'
    folder.mkdir(exist_ok=True)
    for name, lines in (('configs', configs()), ('options', options()), ('errors', markdown(list_errors()))):
        (folder / f'{name}.md').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def setup(app: Sphinx) -> None:
    """Register what happens before pages are read."""
    app.connect('builder-inited', write_generated)
