"""Data sources to tensors: `load("embedded:mnist")` gives three splits of normalised batches."""

from normbench.data.dataset import Batch, Dataset, Split
from normbench.data.errors import DataError
from normbench.data.loading import load
from normbench.data.sources import check_source, is_local, list_embedded

__all__ = [
    "Batch",
    "DataError",
    "Dataset",
    "Split",
    "check_source",
    "is_local",
    "list_embedded",
    "load",
]
