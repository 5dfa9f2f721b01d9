"""What is measured against whom, and the goal of each row."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Against:
    """A contestant beside ours; goal: ours is so many times faster. None: for information."""

    contestant: str
    goal: float | None = None
    stretch: float | None = None


@dataclass(frozen=True)
class Row:
    """One quantity on one work load.

    points: how many, or None for all; quick: how many in a smoke run. most_rounds: cap of its rounds.
    at_most: the goals are turned round: ours takes at most so many times as long.
    """

    workload: str
    quantity: str
    title: str
    against: tuple[Against, ...]
    points: int
    quick: int
    at_most: bool = False
    most_rounds: int = 100

    @property
    def contestants(self) -> tuple[str, ...]:
        return ("ours", *(a.contestant for a in self.against))


# A top-5 is asked for to a certified 1e-3; its true error must stay below this.
MOST_ERROR = 1e-4
META_GRADIENT = "meta-gradient"
SHOT_COST = "shot"


def _training(workload: str, title: str, goal: float, points: int, *, quick: int = 0, most_rounds: int = 100) -> Row:
    against = tuple(Against(name, goal) for name in ("plain", "higher", "torchopt", "learn2learn"))
    return Row(workload, META_GRADIENT, title, against, points, quick, most_rounds=most_rounds)


ROWS = (
    Row(
        "W2",
        "top5",
        "top-5 to 1e-3",
        (
            Against("pyhessian", 5, 7),
            Against("eigenthings", 5, 7),
            Against("curvlinops", 12, 16),
            Against("eigsh"),
        ),
        points=8,
        quick=2,
    ),
    Row(
        "W3",
        "top5",
        "top-5 to 1e-3",
        (Against("pyhessian", 50), Against("eigenthings", 30), Against("curvlinops", 80), Against("eigsh")),
        points=100,
        quick=5,
    ),
    Row(
        "W1",
        "top5",
        "top-5 to 1e-3",
        (Against("pyhessian", 5), Against("eigenthings", 1.7), Against("curvlinops", 2.5)),
        points=1,
        quick=0,
        most_rounds=3,
    ),
    Row(
        "W2",
        "products",
        "one product",
        (Against("floor", 1.5), Against("kept_graph"), Against("eigenthings"), Against("curvlinops")),
        points=32,
        quick=4,
        at_most=True,
    ),
    Row(
        "W1",
        "products",
        "one product",
        (Against("floor", 2.5), Against("kept_graph"), Against("eigenthings"), Against("curvlinops")),
        points=1,
        quick=0,
        at_most=True,
    ),
    Row(
        "W2",
        "trace",
        "trace, 100 probes",
        (Against("pyhessian", 1.8),),
        points=32,
        quick=1,
        most_rounds=3,
    ),
    Row("W3", "spectrum", "whole spectra", (Against("dense", 3),), points=20, quick=2),
    Row(
        "W3",
        "one point",
        "one point, 100 products",
        (Against("kept_graph", 1),),
        points=1,
        quick=1,
        at_most=True,
    ),
    _training("M1", "4-conv-64 28x28", 1, 4),
    _training("M2", "the same, first order", 1, 4),
    _training("M3", "4-conv-64 84x84", 1, 1),
    _training("M4", "ResNet-12 84x84", 1, 1, most_rounds=3),
    Row("M1", SHOT_COST, "time with SHOT over time without, 5-shot", (Against("ours_shot"),), points=4, quick=0),
    Row("M7", SHOT_COST, "the same, 1-shot", (Against("ours_shot"),), points=4, quick=0),
    _training("M5", "sines, 25 tasks", 4, 25, quick=25),
    _training("M6", "the same, first order", 4, 25, quick=25),
)


def chosen(only: tuple[str, ...], *, quick: bool) -> tuple[Row, ...]:
    """The rows of a run; only: work loads ("W3") or quantities ("trace"). ValueError where nothing is left."""
    known = {row.workload for row in ROWS} | {row.quantity for row in ROWS}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ValueError(f"--only {unknown[0]}: give work loads or quantities among {', '.join(sorted(known))}")
    loads = [name for name in only if name in {row.workload for row in ROWS}]
    quantities = [name for name in only if name not in loads]
    rows = [r for r in ROWS if (not loads or r.workload in loads) and (not quantities or r.quantity in quantities)]
    rows = [r for r in rows if not quick or r.quick]
    if not rows:
        raise ValueError(f"no row fits --only {' '.join(only)}; W1 is not in --quick")
    return tuple(rows)
