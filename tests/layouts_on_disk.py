"""Functions that write small data sets, one for each layout on disk that the library reads.

Each has a few classes of a few tiny images. Image number e of class c has one colour, ``tint(c, e)``, so that the
colour that was read tells which image it came from.
"""

import csv
import io
import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

EXAMPLES = 4  # images of each class


def tint(c: int, e: int) -> tuple[int, int, int]:
    """The colour (red, green, blue) of image e of class c."""
    return 20 * c + 5 * e, 255 - 20 * c, 10 * e


def pixels(c: int, e: int, side: int = 8) -> np.ndarray:
    """Image e of class c [height, width, channel], all of one colour."""
    return np.broadcast_to(np.array(tint(c, e), np.uint8), (side, side, 3)).copy()


def png(c: int, e: int, *, side: int = 8) -> bytes:
    """Image e of class c as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels(c, e, side)).save(buffer, "PNG")
    return buffer.getvalue()


def put(file: Path, content: bytes | str) -> Path:
    """Write a file, and make its folder if there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def dump(file: Path, value: object, *, protocol: int = 2) -> Path:
    """Write a pickle."""
    return put(file, pickle.dumps(value, protocol=protocol))


def zipped(folder: Path, archive: Path, *, below: str = "") -> Path:
    """Pack a folder into a zip archive. below: a prefix for the names of all files, such as "folder/"."""
    with zipfile.ZipFile(archive, "w") as out:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                out.write(file, below + str(file.relative_to(folder)))
    return archive


def class_folders(root: Path, names: Sequence[str], *, ending: str = "png", first: int = 0) -> Path:
    """Write files <class>/<e>.png; the number c of a class is its index in ``names`` plus ``first``."""
    for c, name in enumerate(names, start=first):
        for e in range(EXAMPLES):
            put(root / name / f"{e}.{ending}", png(c, e))
    return root


# Omniglot

CHARACTERS = {
    "images_background": {"Futurama": (1, 2), "Hebrew": (1,)},
    "images_evaluation": {"Gurmukhi": (41, 42), "ULOG": (1,)},
}


def stroke(c: int, e: int) -> bytes:
    """A 1-bit PNG of 28 x 28, ink 0 on paper 1: a bar that begins on the left in row c + 1 and is 3 + e pixels long."""
    image = np.ones((28, 28), bool)
    image[c + 1, : 3 + e] = False
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def omniglot(root: Path) -> Path:
    """Write Omniglot in the folders of torchvision. Classes are numbered by name, those of the background first."""
    c = 0
    for folder, alphabets in CHARACTERS.items():
        for alphabet, numbers in alphabets.items():
            for number in numbers:
                for e in range(EXAMPLES):
                    name = f"{number:04d}_{e + 1:02d}.png"
                    put(root / folder / alphabet / f"character{number:02d}" / name, stroke(c, e))
                c += 1
    return root


# Pickles of miniImageNet, FC100, tieredImageNet and CIFAR-100

# The classes of each part, named by their WordNet synsets.
SYNSETS = {"train": ("n01532829", "n01558993"), "val": ("n01855672",), "test": ("n01930112", "n01981276")}


def numbered(parts: Mapping[str, Sequence[str]] = SYNSETS) -> dict[str, int]:
    """The number of each class, counted over all parts."""
    return {name: c for c, name in enumerate(name for names in parts.values() for name in names)}


def stacked(names: Sequence[str], side: int = 84) -> np.ndarray:
    """The images of the classes, one class after another, [image, height, width, channel]."""
    numbers = numbered()
    return np.stack([pixels(numbers[name], e, side) for name in names for e in range(EXAMPLES)])


def rows_of(names: Sequence[str]) -> dict[str, list[int]]:
    """The indices of each class among the images of ``stacked``."""
    return {name: list(range(i * EXAMPLES, (i + 1) * EXAMPLES)) for i, name in enumerate(names)}


def mini_pickles(root: Path, *, val: str = "val") -> Path:
    """Write the pickles of miniImageNet. val: what the name of the validation file calls its part."""
    for part, names in SYNSETS.items():
        content = {"image_data": stacked(names), "class_dict": rows_of(names)}
        dump(root / f"mini-imagenet-cache-{val if part == 'val' else part}.pkl", content)
    return root


def labels_of(names: Sequence[str], *, start: int = 0) -> list[int]:
    """The label of each image of ``stacked``, counted from ``start``."""
    return [start + i for i, _ in enumerate(names) for _ in range(EXAMPLES)]


def fc100_pickles(root: Path) -> Path:
    """Write the pickles of FC100, whose images have 32 x 32 pixels."""
    for part, names in SYNSETS.items():
        dump(root / f"FC100_{part}.pickle", {"data": stacked(names, 32), "labels": labels_of(names)})
    return root


def tiered(root: Path, *, packed: str) -> Path:
    """Write tieredImageNet.

    packed: the form of the images: "png" for a pickle of PNG bytes, "arrays" for a pickle of byte arrays, and "npz" for
    an array of pixels.
    """
    for part, names in SYNSETS.items():
        numbers = numbered()
        files = [png(numbers[name], e, side=84) for name in names for e in range(EXAMPLES)]
        if packed == "npz":
            np.savez(root / f"{part}_images.npz", images=stacked(names))
        else:
            arrays = [np.frombuffer(file, np.uint8)[:, None] for file in files]
            dump(root / f"{part}_images_png.pkl", files if packed == "png" else arrays, protocol=4)
        labels = np.array(labels_of(names), np.int32)
        dump(root / f"{part}_labels.pkl", {b"label_specific": labels, b"label_specific_str": list(names)}, protocol=3)
    return root


CIFAR_NAMES = ("apple", "beaver", "baby", "bottle")
CIFAR_COARSE = (4, 0, 14, 3)  # the numbers of their superclasses in CIFAR-100


def cifar100(root: Path) -> Path:
    """Write CIFAR-100, with images 0 and 1 of each class in train, and 2 and 3 in test."""
    for part, examples in (("train", (0, 1)), ("test", (2, 3))):
        rows = [(c, e) for e in examples for c in range(len(CIFAR_NAMES))]
        content = {
            "data": np.stack([pixels(c, e, 32).transpose(2, 0, 1).ravel() for c, e in rows]),
            "fine_labels": [c for c, _ in rows],
            "coarse_labels": [CIFAR_COARSE[c] for c, _ in rows],
        }
        dump(root / "cifar-100-python" / part, content)
    dump(root / "cifar-100-python" / "meta", {"fine_label_names": list(CIFAR_NAMES)})
    return root


# Images with lists of their classes

BERTINETTO = {"train": ("apple", "bear"), "val": ("beaver",), "test": ("baby",)}


def bertinetto(root: Path) -> Path:
    """Write CIFAR-FS: folders of classes, and a list of the classes of each part of Bertinetto's split."""
    class_folders(root / "cifar100" / "data", [name for names in BERTINETTO.values() for name in names])
    for part, names in BERTINETTO.items():
        put(root / "cifar100" / "splits" / "bertinetto" / f"{part}.txt", "\n".join(names) + "\n")
    return root


def mini_csv(root: Path, *, heading: tuple[str, str]) -> Path:
    """Write miniImageNet as a folder of images and a CSV file for each part.

    heading: the names of the two columns of these files.
    """
    numbers = numbered()
    for part, names in SYNSETS.items():
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(heading)
        for name in names:
            for e in range(EXAMPLES):
                file = f"{name}{e:08d}.jpg"
                put(root / "images" / file, png(numbers[name], e, side=130))
                image_first = heading[0] in ("filename", "image_name")
                writer.writerow((file, name) if image_first else (name, file))
        put(root / f"{part}.csv", text.getvalue())
    return root


def mini_split_csv(root: Path, *, folder: str) -> Path:
    """Write miniImageNet as a folder of images, with the CSV files in a folder of their own that has this name."""
    mini_csv(root, heading=("filename", "label"))
    (root / folder).mkdir()
    for part in SYNSETS:
        (root / f"{part}.csv").rename(root / folder / f"{part}.csv")
    return root


def capital_folders(root: Path) -> Path:
    """Write files <Part>/<class>/<e>.png, with a capital letter."""
    split_folders(root)
    for part in SYNSETS:
        # By way of another name, because some file systems do not tell capital letters from small ones.
        (root / part).rename(root / "moved")
        (root / "moved").rename(root / part.capitalize())
    return root


def split_folders(root: Path) -> Path:
    """Write files <part>/<class>/<e>.png."""
    numbers = numbered()
    for part, names in SYNSETS.items():
        for name in names:
            class_folders(root / part, [name], first=numbers[name], ending="png")
    return root


# Birds and cars

BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "004.Groove_billed_Ani", "044.Frigatebird")
BOX = (2, 3, 4, 4)  # the box around the object in an image: x, y (from 0), width, height


def boxed(c: int, e: int) -> bytes:
    """A PNG that is white outside the box and has the tint inside."""
    image = np.full((10, 10, 3), 255, np.uint8)
    x, y, width, height = BOX
    image[y : y + height, x : x + width] = tint(c, e)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def birds(root: Path) -> Path:
    """Write CUB-200-2011, with a list of images and one of their boxes."""
    home, names = root / "CUB_200_2011", []
    for c, bird in enumerate(BIRDS):
        for e in range(EXAMPLES):
            names.append(f"{bird}/{bird[4:]}_{e:04d}.png")
            put(home / "images" / names[-1], boxed(c, e))
    put(home / "images.txt", "".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    box = " ".join(f"{n:.1f}" for n in BOX)
    put(home / "bounding_boxes.txt", "".join(f"{i} {box}\n" for i in range(1, len(names) + 1)))
    return root


CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012", "Ram C/V Cargo Van Minivan 2012")


def cars(root: Path, *, last_label: int = len(CARS)) -> Path:
    """Write Stanford Cars, where labels and pixels count from 1, and a box includes its last pixels.

    last_label: the label that the images of the last class get.
    """
    x, y, width, height = BOX
    rows = []
    for c in range(len(CARS)):
        for e in range(EXAMPLES):
            name = f"{len(rows) + 1:05d}.jpg"
            put(root / "cars_train" / name, boxed(c, e))
            label = last_label if c == len(CARS) - 1 else c + 1
            rows.append((x + 1, y + 1, x + width, y + height, label, name))
    fields = [(f"bbox_{key}", "O") for key in ("x1", "y1", "x2", "y2")] + [("class", "O"), ("fname", "O")]
    (root / "devkit").mkdir()
    savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": np.array(rows, dtype=fields)[None]})
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array(CARS, dtype=object)[None]})
    return root


# Parquet


def hub_parquet(root: Path) -> Path:
    """Write Parquet files as the Hugging Face hub stores them. This needs pyarrow.

    Each file has images of every class, and the metadata of its schema hold the names of the classes.
    """
    import pyarrow
    from pyarrow import parquet

    names = sorted(numbered())
    note = json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})
    for part, examples in (("test", (0,)), ("train", (1, 2)), ("validation", (3,))):
        rows = [(numbered()[name], e, label) for e in examples for label, name in enumerate(names)]
        table = pyarrow.table(
            {
                "image": [{"bytes": png(c, e, side=130), "path": None} for c, e, _ in rows],
                "label": [label for _, _, label in rows],
            }
        ).replace_schema_metadata({"huggingface": note})
        (root / "data").mkdir(exist_ok=True)
        parquet.write_table(table, root / "data" / f"{part}-00000-of-00001.parquet")
    return root


# Features


def feature_vector(c: int, e: int) -> list[float]:
    """The features of image e of class c, which tell both numbers."""
    return [float(c), float(e), 0.5]


def feature_arrays(parts: Mapping[str, Sequence[str]] = SYNSETS) -> dict[str, np.ndarray]:
    """The arrays of one file with the features of all parts; its rows are not sorted by class."""
    numbers = numbered(parts)
    rows = [(part, name, e) for e in range(EXAMPLES) for part, names in parts.items() for name in names]
    return {
        "features": np.array([feature_vector(numbers[name], e) for _, name, e in rows]),
        "labels": np.array([name for _, name, _ in rows]),
        "parts": np.array([part for part, _, _ in rows]),
    }
