# SPDX-License-Identifier: GPL-3.0-or-later
"""Sphinx settings for the documentation site: `make docs`. It needs no network, and its pages load nothing from one."""

project = "iotops.tunnel"
copyright = "the iotops.tunnel authors"
extensions = ["myst_parser", "sphinx_antsibull_ext"]
include_patterns = ["index.md", "*.md", "docs/*.md", "roles/*/README.md", "reference/*.rst"]
root_doc = "index"
myst_heading_anchors = 4
html_theme = "furo"
html_title = project
# antsibull-docs refers to pages of Ansible's own documentation, which are not part of this site.
suppress_warnings = ["ref.ref"]
