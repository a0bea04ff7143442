"""Encoded images to uint8 arrays: channels, size, and errors that name the image."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from normbench.data.contents import Images
from normbench.data.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

GRAY_MODES = frozenset({"1", "L", "LA"})
COLOUR_MODES = frozenset({"P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "PA"})


@dataclass(frozen=True)
class Format:
    """What images are made into.

    Attributes:
        channels: 1 or 3.
        height: in pixels.
        width: in pixels.
        resize: whether an image of another size is resized and cropped rather than refused.
    """

    channels: int
    height: int
    width: int
    resize: bool


def choose_format(
    source: str, images: Images, image_size: int | None, channels: int | None
) -> Format:
    """The format of the first image, as far as the options leave it open."""
    first = open_image(source, images, 0)
    channels = channels or (1 if first.mode in GRAY_MODES else 3)
    if image_size is not None:
        return Format(channels, image_size, image_size, resize=True)
    return Format(channels, first.height, first.width, resize=False)


def open_image(source: str, images: Images, index: int) -> Image:
    """One decoded image.

    Raises:
        DataError: if it cannot be decoded, or is not 8 bits deep.
    """
    from PIL import Image as pil

    try:
        image = pil.open(io.BytesIO(images[index]))
        image.load()
    except (OSError, SyntaxError, pil.DecompressionBombError) as error:  # what Pillow raises
        raise DataError(f"{source}: image {index} cannot be decoded: {error}") from error
    if image.mode not in GRAY_MODES | COLOUR_MODES:
        raise DataError(
            f"{source}: image {index} has Pillow mode {image.mode!r}; expected 8 bits a channel, "
            "grayscale or colour"
        )
    return image


def convert(source: str, image: Image, index: int, channels: int, asked: bool) -> Image:
    """An image in the right number of channels; colour is dropped only if that was asked for.

    Raises:
        DataError: if a colour image turns up among grayscale ones.
    """
    if channels == 1 and image.mode not in GRAY_MODES and not asked:
        raise DataError(
            f"{source}: image {index} is in colour while the first is grayscale; choose with "
            "channels=3 or channels=1"
        )
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def resized(image: Image, size: int) -> Image:
    """Shorter side to `size` bilinearly, then the centre square.

    The same pixels as torchvision's Resize and CenterCrop, which timm's evaluation transform is
    made of, without the second that importing them takes.
    """
    from PIL.Image import Resampling

    width, height = image.size
    if min(width, height) != size:
        if width <= height:
            width, height = size, int(size * height / width)
        else:
            width, height = int(size * width / height), size
        image = image.resize((width, height), Resampling.BILINEAR)
    if (width, height) != (size, size):
        left, top = round((width - size) / 2.0), round((height - size) / 2.0)
        image = image.crop((left, top, left + size, top + size))
    return image


def decode_all(
    source: str, images: Images, into: Format, channels_asked: bool
) -> NDArray[np.uint8]:
    """Decode every image to uint8 N,C,H,W.

    Raises:
        DataError: for the first image that cannot be used.
    """
    out = np.empty((len(images), into.channels, into.height, into.width), np.uint8)
    for index in range(len(images)):
        image = open_image(source, images, index)
        image = convert(source, image, index, into.channels, channels_asked)
        if into.resize:
            image = resized(image, into.height)
        elif (image.height, image.width) != (into.height, into.width):
            raise DataError(
                f"{source}: image {index} has {image.height}x{image.width} pixels, the first "
                f"{into.height}x{into.width}; give image_size"
            )
        pixels = np.asarray(image)
        out[index] = pixels if into.channels == 1 else pixels.transpose(2, 0, 1)
    return out
