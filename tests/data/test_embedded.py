from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from normbench.data import DataError, list_embedded, load
from normbench.data.parquet import EMBEDDED, EMBEDDED_NAMES

SPLITS = ("train", "validation", "test")


def image_hashes(name: str, split: str) -> list[bytes]:
    column = pq.read_table(EMBEDDED / f"{name}-{split}.parquet").column("image")
    return [hashlib.sha256(row["bytes"]).digest() for row in column.to_pylist()]


@pytest.mark.parametrize("name", EMBEDDED_NAMES)
def test_no_image_is_in_two_splits_or_twice_in_one(name: str) -> None:
    hashes = [h for split in SPLITS for h in image_hashes(name, split)]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_sizes(name: str) -> None:
    sizes = [
        pq.ParquetFile(EMBEDDED / f"{name}-{split}.parquet").metadata.num_rows for split in SPLITS
    ]
    assert sizes == [12_000, 2_000, 5_000]


def test_all_files_together_are_small() -> None:
    assert sum(path.stat().st_size for path in EMBEDDED.glob("*.parquet")) <= 14_000_000


@pytest.mark.parametrize("name", EMBEDDED_NAMES)
def test_content_is_what_its_checksum_says(name: str) -> None:
    for split in SPLITS:
        table = pq.read_table(EMBEDDED / f"{name}-{split}.parquet")
        encoded = b"".join(row["bytes"] for row in table.column("image").to_pylist())
        labels = table.column("label").to_numpy().astype("<i8").tobytes()
        expected = table.schema.metadata[b"normbench.sha256"].decode()
        assert hashlib.sha256(encoded + labels).hexdigest() == expected


@pytest.mark.parametrize("name", EMBEDDED_NAMES)
def test_every_split_has_every_class_in_nearly_equal_shares(name: str) -> None:
    shares = {}
    for split in SPLITS:
        labels = pq.read_table(EMBEDDED / f"{name}-{split}.parquet").column("label").to_numpy()
        shares[split] = torch.bincount(torch.tensor(labels), minlength=10) / len(labels)
    # MNIST's original training and test sets differ by up to 0.5 points themselves
    assert (shares["train"] - shares["validation"]).abs().max() < 0.005
    assert (shares["train"] - shares["test"]).abs().max() < 0.01


def test_digits_load_as_documented() -> None:
    digits = load("embedded:digits")
    assert (digits.channels, digits.image_size, digits.num_classes) == (1, (28, 28), 10)
    assert len(digits.train) + len(digits.validation) + len(digits.test) == 1797
    assert digits.class_names == tuple("0123456789")


def test_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is a dev extra")
    digits = load("embedded:digits")
    ours = torch.cat([s.labels for s in (digits.train, digits.validation, digits.test)])
    theirs = torch.from_numpy(datasets.load_digits().target)
    assert torch.equal(torch.bincount(ours), torch.bincount(theirs))


def test_mnist_is_a_real_mnist() -> None:
    mnist = load("embedded:mnist")
    # published statistics of MNIST's 60,000 training images
    assert mnist.mean[0] == pytest.approx(0.1307, abs=0.001)
    assert mnist.std[0] == pytest.approx(0.3081, abs=0.001)


def test_a_nearest_neighbour_of_raw_pixels_reads_the_digits() -> None:
    mnist = load("embedded:mnist", train_samples=2000)
    images, labels = next(mnist.train.ordered(2000))
    queries, truth = next(mnist.test.ordered(500))
    nearest = torch.cdist(queries.flatten(1), images.flatten(1)).argmin(1)
    assert (labels[nearest] == truth).float().mean() > 0.85


def test_metadata_is_what_datasets_reads() -> None:
    datasets = pytest.importorskip("datasets", reason="GPU machines do not have it")
    metadata = pq.read_schema(EMBEDDED / "fashion-mnist-test.parquet")
    features = datasets.Features.from_arrow_schema(metadata)
    assert isinstance(features["image"], datasets.Image)
    assert features["label"].names[9] == "Ankle boot"


def test_licences_are_shipped() -> None:
    text = (EMBEDDED / "README.md").read_text()
    assert all(f"embedded:{name}" in text for name in EMBEDDED_NAMES)
    assert "Permission is hereby granted" in text


def test_an_unknown_set_gets_the_nearest_name() -> None:
    with pytest.raises(DataError, match="did you mean 'embedded:fashion-mnist'"):
        load("embedded:fashion_mnist")


def test_names_are_listed() -> None:
    assert list_embedded() == ["embedded:digits", "embedded:fashion-mnist", "embedded:mnist"]


def test_the_script_draws_distinct_images_and_stores_them_exactly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import io

    import numpy as np
    from PIL import Image

    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    import make_embedded_data as script

    sys.modules.pop("make_embedded_data", None)
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    images[7] = images[3]  # a duplicate
    images[9] = images[30] = 0
    pool = script.Pool("test", images, np.arange(40) % 2)
    first, second = script.draw(pool, 20, 10, unlike={images[0].tobytes()})
    drawn = [images[i].tobytes() for i in (*first, *second)]
    assert len(set(drawn)) == 30
    assert images[0].tobytes() not in drawn
    decoded = np.asarray(Image.open(io.BytesIO(script.png(images[3]))))
    assert np.array_equal(decoded, images[3])
