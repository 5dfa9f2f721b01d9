"""Damaged files, and files of no known layout, give a readable error and leave no part of a cache behind."""

from pathlib import Path

import layouts_on_disk as disk
import numpy as np
import pytest

from hessian_tools.data import ImageTasks, describe, open_data


def mini_pickle_cut_off(root: Path) -> None:
    disk.mini_pickles(root)
    file = root / "mini-imagenet-cache-val.pkl"
    file.write_bytes(file.read_bytes()[:2000])


def mini_image_number_too_large(root: Path) -> None:
    disk.mini_pickles(root)
    rows = {"n01855672": [0, 1, 99]}
    disk.dump(root / "mini-imagenet-cache-val.pkl", {"image_data": disk.stacked(["n01855672"]), "class_dict": rows})


def mini_image_in_no_class(root: Path) -> None:
    disk.mini_pickles(root)
    content = {"image_data": disk.stacked(["n01855672"]), "class_dict": {"n01855672": [0, 1, 2]}}
    disk.dump(root / "mini-imagenet-cache-val.pkl", content)


def fewer_labels_than_images(root: Path) -> None:
    disk.fc100_pickles(root)
    disk.dump(root / "FC100_val.pickle", {"data": disk.stacked(["n01855672"], 32), "labels": [0, 0]})


def negative_label(root: Path) -> None:
    disk.fc100_pickles(root)
    disk.dump(root / "FC100_val.pickle", {"data": disk.stacked(["n01855672"], 32), "labels": [0, 0, 0, -1]})


def label_between_two(root: Path) -> None:
    disk.fc100_pickles(root)
    disk.dump(root / "FC100_val.pickle", {"data": disk.stacked(["n01855672"], 32), "labels": [0, 0, 0, 1.5]})


def tiered_labels_too_few(root: Path) -> None:
    disk.tiered(root, packed="arrays")
    disk.dump(root / "val_labels.pkl", {"labels": [0, 0, 0]})


def tiered_labels_too_many(root: Path) -> None:
    disk.tiered(root, packed="npz")
    disk.dump(root / "val_labels.pkl", {"labels": [0] * 7})


def tiered_labels_missing(root: Path) -> None:
    disk.tiered(root, packed="png")
    (root / "test_labels.pkl").unlink()


def listed_image_missing(root: Path) -> None:
    disk.mini_csv(root, heading=("filename", "label"))
    (root / "images" / "n0185567200000002.jpg").unlink()


def unknown_csv_columns(root: Path) -> None:
    disk.mini_csv(root, heading=("file", "class"))


def listed_class_unknown(root: Path) -> None:
    disk.bertinetto(root)
    disk.put(root / "cifar100" / "splits" / "bertinetto" / "val.txt", "beavr\n")


def empty_class_folder(root: Path) -> None:
    disk.class_folders(root, ["cat", "dog", "eel"])
    (root / "fox").mkdir()


def file_without_image(root: Path) -> None:
    disk.class_folders(root, ["cat", "dog", "eel"])
    disk.put(root / "dog" / "2.png", b"<html>404</html>")


def listed_car_missing(root: Path) -> None:
    disk.cars(root)
    (root / "cars_train" / "00003.jpg").unlink()


def car_class_without_image(root: Path) -> None:
    disk.cars(root, last_label=3)


def car_label_zero(root: Path) -> None:
    disk.cars(root, last_label=0)


def damaged_zip(root: Path) -> None:
    disk.put(root / "images_background.zip", b"PK\x03\x04 half of it")


def two_data_sets(root: Path) -> None:
    disk.omniglot(root / "a")
    disk.omniglot(root / "b")


def cifar_with_other_keys(root: Path) -> None:
    disk.cifar100(root)
    disk.dump(root / "cifar-100-python" / "train", {"data": np.zeros((1, 3072), np.uint8), "labels": [0]})


def cifar_with_a_negative_label(root: Path) -> None:
    disk.cifar100(root)
    content = {"data": np.zeros((1, 3072), np.uint8), "fine_labels": [-1], "coarse_labels": [0]}
    disk.dump(root / "cifar-100-python" / "train", content)


def tiered_images_without_pixels(root: Path) -> None:
    disk.tiered(root, packed="npz")
    np.savez(root / "val_images.npz", images=np.zeros((4, 84, 0, 3), np.uint8))


def class_in_two_places(root: Path) -> None:
    disk.split_folders(root)
    disk.class_folders(root / "test", ["n01532829"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (mini_pickle_cut_off, r"mini-imagenet-cache-val.pkl cannot be read as a pickle .*; fetch it again"),
        (mini_image_number_too_large, r"class n01855672 lists image 99, but there are 4; fetch"),
        (mini_image_in_no_class, r"image 3 is in no class"),
        (fewer_labels_than_images, r"FC100_val.pickle has 4 images but 2 labels"),
        (negative_label, r"the part val has the label -1; labels are whole numbers from 0"),
        (label_between_two, r"the part val has the label 1.5; labels are whole numbers from 0"),
        (tiered_labels_too_few, r"val_images_png.pkl has 4 images but 3 labels"),
        (tiered_labels_too_many, r"val_images.npz has 4 images but 7 labels"),
        (tiered_labels_missing, r"holds test_images_png.pkl, but not its labels, test_labels.pkl; fetch"),
        (listed_image_missing, r"val.csv lists n0185567200000002.jpg, but there is no such file"),
        (unknown_csv_columns, r"has the columns file, class; use filename,label or class_name,image_name"),
        (listed_class_unknown, r"names a class 'beavr' that .* does not hold; did you mean 'beaver'"),
        (empty_class_folder, r"the class folder fox in .* is empty; fill it, or move it elsewhere"),
        (file_without_image, r"dog/2.png cannot be read as an image"),
        (listed_car_missing, r"lists 00003.jpg, which is not in cars_train"),
        (car_class_without_image, r"the class 'Ram C/V Cargo Van Minivan 2012' .* has no image"),
        (car_label_zero, r"has label 0; labels are 1 to 4"),
        (damaged_zip, r"images_background.zip cannot be read as a zip"),
        (two_data_sets, r"holds 2 data sets: Omniglot, folders of alphabets in a; Omniglot, .* in b.\nGive the folder"),
        (
            cifar_with_other_keys,
            r"train holds data, labels, but not 'fine_labels'; it may belong to another data set",
        ),
        (cifar_with_a_negative_label, r"train has label -1, but .*meta names 4 classes; fetch both again"),
        (tiered_images_without_pixels, r"val_images.npz: images are of shape \(4, 84, 0, 3\); an image has 1 to"),
        (class_in_two_places, r"the class n01532829 lies in two places, test/n01532829 and train/n01532829"),
    ],
)
def test_damage_is_reported_in_at_most_two_lines(make, message, tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        open_data(tmp_path)
    assert str(error.value).count("\n") <= 1
    assert not list(tmp_path.rglob("*.partial")) and not list(tmp_path.rglob("*.json"))


def test_a_folder_without_a_data_set_is_refused_with_the_known_layouts(tmp_path):
    disk.put(tmp_path / "notes.txt", "")
    with pytest.raises(
        ValueError, match=r"none of the known layouts; it holds notes.txt.\nLooked for: Omniglot"
    ) as error:
        describe(tmp_path)
    for word in ("mini-imagenet-cache", "tieredImageNet", "cifar-100-python", "CUB_200_2011", "cars_train", "parquet"):
        assert word in str(error.value)
    with pytest.raises(ValueError, match="there is no file or folder"):
        open_data(tmp_path / "absent")


def test_the_class_with_too_few_images_for_an_episode_is_named(tmp_path):
    disk.class_folders(tmp_path, ["ant", "bee", "cat", "dog", "eel"])
    (tmp_path / "dog" / "3.png").unlink()
    data = open_data(tmp_path)
    with pytest.raises(
        ValueError, match=r"need 4 images of each class but the class 'dog' of images has 3; use at most 3"
    ):
        ImageTasks(data, ways=1, shots=2, queries=2)
    seen = [ImageTasks(data, ways=2, shots=1, queries=2).episode(seed=0, split="train", index=i) for i in range(20)]
    assert len({image.numpy().tobytes() for episode in seen for image in episode.support[0]}) > 6
