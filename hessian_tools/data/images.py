"""Opens the bytes of one image file, with a limit for its size."""

import io

from PIL import Image

# The formats that data sets use. Pillow knows further ones, and opening one of them (PostScript) runs another program.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 64_000_000  # the largest photograph of the known data sets has 42 million


def open_image(content: bytes) -> Image.Image:
    """The image in the bytes of an image file; its pixels are not decoded yet.

    Raises ValueError where the image has more than ``MAX_PIXELS`` pixels, and what Pillow raises where it is no image.
    """
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, but at most {MAX_PIXELS} are decoded")
    return image
