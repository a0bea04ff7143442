from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from made_images import labels_of, pixels, write_parquet

from normbench.data import DataError, cache, load


def source_in(folder: Path) -> str:
    path = write_parquet(folder / "data.parquet", list(pixels(40, 0)), labels_of(40))
    return f"parquet:{path}"


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("normbench.data.loading.decode_all", fail)


def test_the_second_load_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_in(tmp_path)
    first = load(source)
    forbid_decoding(monkeypatch)
    second = load(source)
    assert second.fingerprint == first.fingerprint
    assert np.array_equal(next(second.test.ordered(99))[0], next(first.test.ordered(99))[0])


def test_changed_data_are_decoded_again(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    before = load(source).fingerprint
    write_parquet(tmp_path / "data.parquet", list(pixels(40, 1)), labels_of(40))
    assert load(source).fingerprint != before


@pytest.mark.parametrize("damage", ["truncate", "flip", "not json", "missing array", "not npy"])
def test_a_damaged_entry_is_replaced(tmp_path: Path, private_cache: Path, damage: str) -> None:
    source = source_in(tmp_path)
    expected = load(source).fingerprint
    (entry,) = private_cache.iterdir()
    target = entry / "train-images.npy"
    if damage == "truncate":
        target.write_bytes(target.read_bytes()[:-100])
    elif damage == "flip":
        data = bytearray(target.read_bytes())
        data[-1] ^= 1
        target.write_bytes(data)
    elif damage == "not json":
        (entry / "entry.json").write_text("{")
    elif damage == "missing array":
        target.unlink()
    else:
        target.write_bytes(b"nonsense")
    assert load(source).fingerprint == expected
    assert cache.read(entry.name) is not None


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    monkeypatch.setenv("NORMBENCH_CACHE", str(blocked / "cache"))
    assert len(load(source_in(tmp_path)).train) > 0


def test_a_full_disk_leaves_nothing_behind(
    private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.save", full)
    cache.write("key", {"a": np.zeros(3)}, {})
    assert list(private_cache.iterdir()) == []


def test_simultaneous_writers_leave_one_whole_entry(private_cache: Path) -> None:
    array = np.arange(100_000)
    writers = [
        threading.Thread(target=cache.write, args=("key", {"a": array}, {"n": 1})) for _ in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = cache.read("key")
    assert found is not None
    assert np.array_equal(found[0]["a"], array)
    assert [path.name for path in private_cache.iterdir()] == ["key"]


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NORMBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.folder() == Path("/x/normbench")


def test_a_smaller_memory_limit_is_honoured_although_cached(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    load(source)
    with pytest.raises(DataError, match="is streamed; give image_size"):
        load(source, memory_limit_mb=0.001)
