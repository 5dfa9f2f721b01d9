"""The splits of the literature; class_lists.toml holds them and names their sources.

Most constants map the parts of a split (train, val, test) to lists of class names or of class numbers. OMNIGLOT and
VINYALS have other keys, which the comments in the file explain.
"""

import tomllib
from pathlib import Path
from typing import Any

_TABLES = tomllib.loads(Path(__file__).with_name("class_lists.toml").read_text(encoding="utf-8"))
RAVI: dict[str, list[str]] = _TABLES["ravi"]
CIFAR_FS: dict[str, Any] = _TABLES["cifar_fs"]
FC100: dict[str, Any] = _TABLES["fc100"]
META_DATASET_CUB: dict[str, Any] = _TABLES["meta_dataset_cub"]
OMNIGLOT: dict[str, list[str]] = _TABLES["omniglot"]
VINYALS: dict[str, list[str]] = _TABLES["vinyals"]
