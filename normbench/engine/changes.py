"""Whether sources on disk still hold what finished cells were measured on.

A cell's id names its data, it does not contain them: the files behind `parquet:` and
`imagefolder:` can be exchanged under the same name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from normbench import data
from normbench.cells import Record, data_key


def changed_data(finished: Iterable[Record]) -> tuple[set[str], list[str]]:
    """Cells whose data are no longer what they were.

    Reads the data, or finds them in the cache if they have not changed.

    Args:
        finished: one record per cell.

    Returns:
        Ids of those cells; one sentence for each source that changed or cannot be read.
    """
    by_source: dict[str, list[Record]] = defaultdict(list)
    for record in finished:
        if record.data_fingerprint and data.is_local(record.cell.dataset):
            by_source[data_key(record.cell)].append(record)
    changed: set[str] = set()
    sentences = []
    for records in by_source.values():
        cell = records[0].cell
        try:
            now = data.load(cell.dataset, **cell.dataset_args).fingerprint
        except data.DataError as error:
            count = len(records)
            sentences.append(
                f"whether the data of {count} measured cells changed is unknown: {error}"
            )
            continue
        stale = {record.cell_id for record in records if record.data_fingerprint != now}
        if stale:
            sentences.append(
                f"{cell.dataset} has changed since it was used last; "
                f"cells to be measured again: {len(stale)}"
            )
        changed |= stale
    return changed, sentences
