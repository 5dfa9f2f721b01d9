"""From an image as it is stored to the pixels that a network sees: one place for cutting, inverting and resizing."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from hessian_tools.data.layouts.layout import Box, Picture

MODES = {1: "L", 3: "RGB"}
# Part of every cache's key. Raise it whenever the same image would give other pixels.
PIXEL_RECIPE = "pixels-1"


def picture_pixels(
    picture: Picture, *, side: int, channels: int, ink: bool
) -> UInt8[np.ndarray, "channel height width"]:
    """One image as uint8: cut to its box, grey or RGB, ink light if it was dark, and squeezed to a square.

    Resizing is Pillow's bilinear filter, which averages when it shrinks; the sides are scaled apart, as the literature
    on few-shot images does, so nothing is cut off. ValueError where the image cannot be read.
    """
    try:
        image = _opened(picture.content).convert(MODES[channels])
    except UnidentifiedImageError:  # whose words are an address in memory
        raise ValueError(f"{picture.where} cannot be read as an image (of no known format); fetch it again") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise ValueError(f"{picture.where} cannot be read as an image ({e}); fetch it again") from None
    return fitted(_cut(image, picture.box, picture.where), side=side, ink=ink)


def fitted(image: Image.Image, *, side: int, ink: bool = False) -> UInt8[np.ndarray, "channel height width"]:
    """The image at the size asked for, channels first."""
    image = image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8).reshape(side, side, -1).transpose(2, 0, 1)
    return 255 - pixels if ink else pixels


def _opened(content: bytes | np.ndarray) -> Image.Image:
    image = Image.fromarray(content) if isinstance(content, np.ndarray) else Image.open(io.BytesIO(content))
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more: Pillow would clip them to 255
        raise ValueError(f"pixels of mode {image.mode}, more than 8 bits; convert the images to 8 bits")
    return image


def _cut(image: Image.Image, box: Box | None, where: str) -> Image.Image:
    if box is None:
        return image
    left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height)
    if left >= right or top >= bottom:
        raise ValueError(f"{where}: its box {box} lies outside the image of {image.width} x {image.height} pixels")
    return image.crop((left, top, right, bottom))
