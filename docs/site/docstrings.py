"""What mkdocstrings reads: docstrings with roles and shapes set as Markdown."""

from __future__ import annotations

from typing import Any

import griffe
from site_pages.notation import marked


class Notation(griffe.Extension):
    """Every docstring of the package, rewritten once it has been read."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = marked(obj.docstring.value)
