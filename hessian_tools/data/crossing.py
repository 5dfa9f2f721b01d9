"""Learning on one data set and being judged on another."""

from dataclasses import dataclass
from functools import cached_property

from hessian_tools.data.episodes import Episode, TaskSource, text_digest


@dataclass(frozen=True)
class CrossDomainTasks:
    """Tasks of ``source`` in training and validation, of ``target`` in test (Chen et al., 2019).

    For several targets make one object for each; what is trained depends on ``source`` alone, so that one trained
    network serves them all. ValueError unless both have the same kind, input shape and number of outputs.
    """

    source: TaskSource
    target: TaskSource

    def __post_init__(self) -> None:
        for name, advice in (
            ("kind", "use two of classification or two of regression"),
            ("input_shape", "open both with the same image_size and channels"),
            ("outputs", "open both with the same ways"),
        ):
            ours, theirs = getattr(self.source, name), getattr(self.target, name)
            if ours != theirs:
                raise ValueError(f"{name} is {ours} in training and {theirs} in test; {advice}")

    @property
    def kind(self) -> str:
        """Of both."""
        return self.source.kind

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of both."""
        return self.source.input_shape

    @property
    def outputs(self) -> int:
        """Of both."""
        return self.source.outputs

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of both sources' digests."""
        return text_digest("cross-domain-1", self.source.digest, self.target.digest)

    def episode(self, *, seed: int, split: str, index: int) -> Episode:
        """Task number ``index`` of a split: of test from the target, of others from the source."""
        return (self.target if split == "test" else self.source).episode(seed=seed, split=split, index=index)
