"""The one error of this room."""

from __future__ import annotations


class DataError(ValueError):
    """A data source that cannot be used as asked, in one sentence for the person who asked."""
