"""The options of ``python -m benchmarks``, without torch or the library, so that --help is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

Clock = Literal["wall", "cpu"]
AT_LEAST_ONE = Number(gte=1)


@Parameter(name="*")
@dataclass(frozen=True)
class Settings:
    """What a run measures, and how."""

    only: Annotated[
        tuple[str, ...], Parameter(consume_multiple=True, help="Only these work loads (W1 W2 M1) or quantities (top5).")
    ] = ()
    rounds: Annotated[int, Parameter(validator=AT_LEAST_ONE, help="Calls of each contestant after its first one.")] = 5
    quick: Annotated[bool, Parameter(negative="", help="A smoke run of a minute or two: few points, one round.")] = (
        False
    )
    points: Annotated[
        int | None,
        Parameter(
            validator=AT_LEAST_ONE,
            help="The number of parameter vectors (or tasks) in every row [default: each row's own].",
        ),
    ] = None
    threads: Annotated[int, Parameter(validator=AT_LEAST_ONE, help="The number of threads of every process.")] = 1
    allocator: Annotated[
        Literal["both", "default", "keep"],
        Parameter(help="malloc as it is (default), or told to keep freed memory (keep); the same for all."),
    ] = "both"
    device: Literal["cpu", "cuda"] = "cpu"
    clock: Annotated[Clock, Parameter(help="The clock for ratios; cpu is fairer on a busy machine.")] = "wall"
    before: Annotated[
        Path | None,
        Parameter(help="The folder of another checkout, such as an earlier commit, which is raced instead of peers."),
    ] = None
    out: Annotated[Path, Parameter(help="The folder for the JSON, the problems and their reference values.")] = Path(
        "runs/benchmarks"
    )

    @property
    def allocators(self) -> tuple[str, ...]:
        """The settings of malloc, each of which gets a table of its own."""
        names = ("default", "keep") if self.allocator == "both" else (self.allocator,)
        one_is_enough = self.quick or self.device == "cuda"  # malloc does not manage the memory of a GPU
        return names[:1] if one_is_enough else names
