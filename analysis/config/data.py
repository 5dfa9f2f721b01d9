"""Which tasks a study is made of."""

from typing import Literal

from pydantic import model_validator

from analysis.config.base import Flag, Positive, Strict


class DataConfig(Strict):
    """The tasks. queries and test_queries are query images per class in training and on held-out tasks.

    path: data of the user's own; test_path, test_split: others for held-out tasks; the rest: see data.open_data.
    """

    name: Literal["quickdraw", "sine-line"] = "quickdraw"
    ways: Positive = 5
    shots: Positive = 1
    queries: Positive = 15
    test_queries: Positive = 15
    path: str | None = None
    split: str | None = None
    image_size: Positive | None = None
    channels: Literal[1, 3] | None = None
    rotations: Flag = False
    crop: Flag | None = None
    test_path: str | None = None
    test_split: str | None = None

    @model_validator(mode="after")
    def _wishes_have_data(self) -> "DataConfig":
        wishes = self.model_dump(exclude_defaults=True, exclude={"name", "ways", "shots", "queries", "test_queries"})
        if self.source == "sine-line" and wishes:
            raise ValueError(f"{next(iter(wishes))} is for images; sine-line has none")
        return self

    @property
    def source(self) -> str:
        """The path, or the name of a bundled set."""
        return self.path or self.name
