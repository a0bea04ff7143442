from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_images import labels_of, pixels, png, write_parquet
from PIL import Image

from normbench.data import DataError, Split, check_source, load


def images_of(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in next(split.ordered(10_000))[0]}


def test_a_cifar_like_folder_is_read_by_type(cifar_like: Path) -> None:
    data = load(f"parquet:{cifar_like}")
    assert (data.channels, data.image_size, data.num_classes) == (3, (8, 8), 4)
    assert data.class_names == ("plane", "car", "bird", "cat")
    assert (len(data.train), len(data.validation), len(data.test)) == (72, 8, 20)


def test_pixels_arrive_as_they_were(cifar_like: Path) -> None:
    data = load(f"parquet:{cifar_like}")
    images, labels = next(data.test.ordered(20))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (data.mean, data.std))
    expected = pixels(20, 2).transpose(0, 3, 1, 2)
    assert np.array_equal(((images * std + mean) * 255).round().to(torch.uint8), expected)
    assert labels.tolist() == labels_of(20)


def test_carved_splits_share_nothing_and_follow_the_split_seed(cifar_like: Path) -> None:
    first, second = (load(f"parquet:{cifar_like}", split_seed=seed) for seed in (0, 1))
    train, validation = images_of(first.train), images_of(first.validation)
    assert len(train | validation) == 80
    assert images_of(load(f"parquet:{cifar_like}").validation) == validation
    assert not torch.equal(
        next(first.validation.ordered(8))[0], next(second.validation.ordered(8))[0]
    )


def test_identical_images_are_carved_to_the_same_side(tmp_path: Path) -> None:
    three_times = [image for image in pixels(30, 0) for _ in range(3)]
    path = write_parquet(tmp_path / "d.parquet", three_times, [i // 3 % 2 for i in range(90)])
    data = load(f"parquet:{path}")
    raw = [
        {((i * 1000).round()).numpy().tobytes() for i in next(s.ordered(90))[0]}
        for s in (data.train, data.validation, data.test)
    ]
    assert sum(map(len, raw)) == 30


def test_cifar100_takes_the_fine_label_by_its_name(tmp_path: Path) -> None:
    features = {
        "image": {"_type": "Image"},
        "coarse_label": {"_type": "ClassLabel", "names": ["a", "b"]},
        "fine_label": {"_type": "ClassLabel", "names": list("cdef")},
    }
    path = write_parquet(
        tmp_path / "train.parquet", list(pixels(40, 0)), labels_of(40), image="image",
        label="fine_label", features=features, extra={"coarse_label": [0, 1] * 20},
    )  # fmt: skip
    assert load(f"parquet:{path}").class_names == ("c", "d", "e", "f")
    assert load(f"parquet:{path}", label_column="coarse_label").num_classes == 2


def test_a_split_column_divides_a_single_file(tmp_path: Path) -> None:
    splits: list[object] = ["train"] * 20 + ["val"] * 8 + ["test"] * 12
    path = write_parquet(
        tmp_path / "all.parquet", list(pixels(40, 0)), labels_of(40), extra={"split": splits}
    )
    data = load(f"parquet:{path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 8, 12)


def test_without_test_split_the_validation_split_reports(tmp_path: Path) -> None:
    for name, count, seed in (("train", 40, 0), ("validation", 12, 1)):
        write_parquet(tmp_path / f"{name}.parquet", list(pixels(count, seed)), labels_of(count))
    data = load(f"parquet:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 12)


def test_a_validation_split_that_was_asked_for_stays_validation(tmp_path: Path) -> None:
    for name, count, seed in (("train", 40, 0), ("validation", 12, 1)):
        write_parquet(tmp_path / f"{name}.parquet", list(pixels(count, seed)), labels_of(count))
    data = load(f"parquet:{tmp_path}", validation_split="validation")
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 12, 8)


def test_a_test_split_with_hidden_labels_does_not_count(tmp_path: Path) -> None:
    for name, seed in (("train", 0), ("validation", 1)):
        write_parquet(tmp_path / f"{name}.parquet", list(pixels(40, seed)), labels_of(40))
    write_parquet(tmp_path / "test.parquet", list(pixels(40, 2)), [-1] * 40)
    assert load(f"parquet:{tmp_path}").test.labels.min() == 0


def test_named_splits_are_used(tmp_path: Path) -> None:
    splits: list[object] = ["fold1"] * 20 + ["fold2"] * 20
    path = write_parquet(
        tmp_path / "all.parquet", list(pixels(40, 0)), labels_of(40), extra={"split": splits}
    )
    data = load(f"parquet:{path}", train_split="fold2", test_split="fold1")
    assert len(data.test) == 20


def test_a_glob_and_plain_bytes_with_words_for_labels(tmp_path: Path) -> None:
    for name, seed in (("train", 0), ("test", 1)):
        table = pa.table(
            {"image": [png(i) for i in pixels(20, seed, 1)], "label": ["cat", "ant"] * 10}
        )
        pq.write_table(table, tmp_path / f"{name}.parquet")
    data = load(f"parquet:{tmp_path}/*.parquet")
    assert (data.class_names, data.channels) == (("ant", "cat"), 1)
    assert data.test.labels[:2].tolist() == [1, 0]


def test_relative_paths_start_at_the_current_folder(
    cifar_like: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cifar_like.parent)
    assert load("parquet:cifar").num_classes == 4


def make_tree(folder: Path, count: int, seed: int) -> None:
    for number, image in enumerate(pixels(count, seed)):
        place = folder / ("cat", "ant")[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)


def test_imagefolder_with_splits(tmp_path: Path) -> None:
    for split, count, seed in (("train", 20, 0), ("val", 6, 1), ("test", 8, 2)):
        make_tree(tmp_path / split, count, seed)
    data = load(f"imagefolder:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 6, 8)
    assert data.class_names == ("ant", "cat")


def test_imagefolder_with_one_tree_is_split_by_seed(tmp_path: Path) -> None:
    make_tree(tmp_path, 50, 0)
    data = load(f"imagefolder:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 10)


def test_resizing_is_torchvisions(tmp_path: Path) -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize

    from normbench.data.decode import resized

    for width, height in ((50, 31), (31, 50), (9, 8), (16, 16), (20, 16)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), "u1"))
        expected = Compose([Resize(16), CenterCrop(16)])(image)
        assert np.array_equal(np.asarray(resized(image, 16)), np.asarray(expected))


def test_image_size_resizes(cifar_like: Path) -> None:
    assert load(f"parquet:{cifar_like}", image_size=12).image_size == (12, 12)


def test_channels_can_be_chosen(cifar_like: Path) -> None:
    assert load(f"parquet:{cifar_like}", channels=1).channels == 1


def test_loading_embedded_data_imports_little(tmp_path: Path) -> None:
    code = (
        "import sys, normbench.data as d; d.load('embedded:digits');"
        "print([m for m in ('datasets','polars','pydantic','timm','torchvision') if m in"
        " sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("mnist", "unknown data source 'mnist'; did you mean 'embedded:mnist'?"),
        ("embeded:mnist", "did you mean 'embedded:mnist'"),
        ("embedded:mnits", "did you mean 'embedded:mnist'"),
        ("imagefolders:x/y", "did you mean 'imagefolder:x/y'"),
        ("zzz", "valid: embedded:digits, embedded:fashion-mnist, embedded:mnist, hf:OWNER/NAME"),
        ("hf:", "incomplete; expected hf:OWNER/NAME"),
        ("hf:a/b/c", "expected hf:OWNER/NAME, or hf:./FOLDER"),
        ("hf:./nowhere", "no folder at"),
        ("parquet:nowhere.parquet", "no Parquet file at"),
        ("imagefolder:nowhere", "no folder at"),
        ("synthetic:32", "expected synthetic:CxHxW"),
        ("synthetic:2x8x8", "expected 1 or 3 channels"),
    ],
)
def test_a_wrong_source_gets_one_sentence(source: str, sentence: str) -> None:
    with pytest.raises(DataError) as checked:
        check_source(source)
    assert sentence in str(checked.value)
    assert "\n" not in str(checked.value)
    with pytest.raises(DataError, match=r"."):
        load(source)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"image_sise": 3}, "has no option 'image_sise'; did you mean 'image_size'?"),
        ({"revision": "x"}, "has no option 'revision'; valid: train_samples"),
        ({"image_size": "32"}, "option image_size is '32'; expected int"),
        ({"image_size": 0}, "option image_size is 0; expected at least 1"),
        ({"streaming": 1}, "option streaming is 1; expected bool"),
        ({"channels": 2}, "option channels is 2; expected 1 or 3"),
        ({"augment": True, "streaming": False}, "augment needs streaming"),
        ({"train_samples": 20_000}, "train_samples is 20000, but embedded:digits has 1100"),
    ],
)
def test_a_wrong_option_gets_one_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        load("embedded:digits", **options)
    assert sentence in str(caught.value)


def test_fractions_are_between_0_and_1(cifar_like: Path) -> None:
    with pytest.raises(DataError, match="validation_fraction is 1; expected between 0 and 1"):
        load(f"parquet:{cifar_like}", validation_fraction=1.0)


def test_options_are_checked_without_loading() -> None:
    with pytest.raises(DataError, match="has no option 'confg'"):
        check_source("hf:owner/name", {"confg": "x"})
    check_source("embedded:mnist", {"train_samples": None})


def test_a_missing_column_is_told_with_those_there_are(cifar_like: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'lable'.*did you mean 'label'.*img, label"):
        load(f"parquet:{cifar_like}", label_column="lable")


def test_a_set_without_images_is_told_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0], "label": [1]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="no column is the image; its columns are x, label"):
        load(f"parquet:{tmp_path}")


def test_two_possible_label_columns_are_not_guessed_between(tmp_path: Path) -> None:
    features = {n: {"_type": "ClassLabel", "names": ["a", "b"]} for n in ("left", "right")}
    path = write_parquet(
        tmp_path / "t.parquet", list(pixels(4, 0)), [0, 1, 0, 1], label="left",
        features=features, extra={"right": [0, 1, 0, 1]},
    )  # fmt: skip
    with pytest.raises(DataError, match="several columns could be the label"):
        load(f"parquet:{path}")


def test_a_missing_split_is_told_with_those_there_are(cifar_like: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'tets'; did you mean 'test'.*train"):
        load(f"parquet:{cifar_like}", test_split="tets")


def test_one_split_cannot_play_two_roles(cifar_like: Path) -> None:
    with pytest.raises(DataError, match="asked to play two roles"):
        load(f"parquet:{cifar_like}", validation_split="test", test_split="test")


def test_labels_outside_the_names_are_refused(tmp_path: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    path = write_parquet(tmp_path / "t.parquet", list(pixels(3, 0)), [0, 1, 2], features=features)
    with pytest.raises(DataError, match="has label 2; expected 0 to 1"):
        load(f"parquet:{path}")


def test_images_of_different_sizes_need_image_size(tmp_path: Path) -> None:
    images = [*pixels(10, 0), *pixels(10, 1, size=9)]
    path = write_parquet(tmp_path / "t.parquet", images, labels_of(20))
    with pytest.raises(DataError, match="has 9x9 pixels, the first 8x8; give image_size"):
        load(f"parquet:{path}")
    assert load(f"parquet:{path}", image_size=8).image_size == (8, 8)


def test_colour_among_gray_images_is_not_dropped_silently(tmp_path: Path) -> None:
    images = [*pixels(10, 0, channels=1), *pixels(10, 1)]
    path = write_parquet(tmp_path / "t.parquet", images, labels_of(20))
    with pytest.raises(DataError, match="image 10 is in colour while the first is grayscale"):
        load(f"parquet:{path}")
    assert load(f"parquet:{path}", channels=3).channels == 3


def test_deep_images_are_refused(tmp_path: Path) -> None:
    deep = np.zeros((8, 8), np.uint16)
    path = write_parquet(tmp_path / "t.parquet", [deep] * 8, labels_of(8))
    with pytest.raises(DataError, match="expected 8 bits a channel"):
        load(f"parquet:{path}")


def test_broken_image_bytes_are_told_by_number(tmp_path: Path) -> None:
    good = [png(i) for i in pixels(8, 0)]
    table = pa.table({"image": [*good[:5], good[5][:40], *good[6:]], "label": labels_of(8)})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="image 5 cannot be decoded"):
        load(f"parquet:{tmp_path}")


def test_what_is_no_parquet_file_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"t\.parquet cannot be read as Parquet"):
        load(f"parquet:{tmp_path}")


def test_an_imagefolder_of_one_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    Image.fromarray(pixels(1, 0)[0]).save(tmp_path / "only" / "1.png")
    with pytest.raises(DataError, match="only one class folder, 'only'"):
        load(f"imagefolder:{tmp_path}")
