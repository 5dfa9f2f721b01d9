"""Turns a stored image into the pixels that a network sees: all cropping, inverting and resizing is done here."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from hessian_tools.data.layouts.layout import Picture, open_image

MODES = {1: "L", 3: "RGB"}  # for a number of channels, Pillow's name for images of that kind
# This is part of every cache's key. Raise its number whenever the same image would give other pixels.
PIXEL_RECIPE = "pixels-1"


def picture_pixels(
    picture: Picture, *, side: int, channels: int, invert: bool
) -> UInt8[np.ndarray, "channel height width"]:
    """One image as uint8: cropped to its box, made grey or RGB, resized to a square, and inverted if ``invert``.

    Images are resized by Pillow's bilinear filter, which averages over pixels when it shrinks an image. Height and
    width are scaled separately, as in the literature on few-shot images, so nothing is cut off. Raises ValueError if
    the image cannot be read.
    """
    where, content, box = picture.where, picture.content, picture.box
    try:
        image = Image.fromarray(content) if isinstance(content, np.ndarray) else open_image(content)
        if image.mode.startswith("I") or image.mode == "F":  # 16 bits or more, which Pillow would clip to 255
            raise ValueError(f"pixels of mode {image.mode}, more than 8 bits; convert the images to 8 bits")
        image = image.convert(MODES[channels])
    except UnidentifiedImageError:  # its text holds an address in memory, which helps nobody
        raise ValueError(f"{where} cannot be read as an image (of no known format); fetch it again") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise ValueError(f"{where} cannot be read as an image ({e}); fetch it again") from None
    if box:
        left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height)
        if left >= right or top >= bottom:
            raise ValueError(f"{where}: its box {box} lies outside the image of {image.width} x {image.height} pixels")
        image = image.crop((left, top, right, bottom))
    pixels = resized(image, side=side)
    return 255 - pixels if invert else pixels


def resized(image: Image.Image, *, side: int) -> UInt8[np.ndarray, "channel height width"]:
    """The image as a square of the given side, channels first."""
    image = image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(side, side, -1).transpose(2, 0, 1)
