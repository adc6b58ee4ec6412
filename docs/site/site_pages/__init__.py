"""What the site shows beside docs/*.md: made from the registry, docstrings and published records.

:func:`site_pages.whole.pages` gives every page as Markdown, without MkDocs; ``hooks.py`` hands them
over to it.
"""
