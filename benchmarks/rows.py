"""The rows of the table: a work load, the quantity measured on it, the rivals, and the goal against each rival.

The work loads W1 to W3 and M1 to M10 are those of ``benchmarks.workloads``. The package ``benchmarks.peers`` describes
the quantities of W1 to W3.
"""

from dataclasses import dataclass, replace

# Every contestant is asked for the top 5 eigenvalues to a relative tolerance of 1e-3. If our true relative error is
# this large or larger, the goal is missed at any speed.
MAX_ERROR = 1e-4
META_GRADIENT = "meta-gradient"
# The quantity that compares the time of a meta-gradient with and without SHOT, which is a penalty on the distance
# between the ends of few large and of many small inner steps (Lee, Yoo and Kwak, 2023).
SHOT_COST = "shot"
BEFORE = "before"  # the contestant "ours" of the checkout that ``--before`` names
# Against it, the time of ours may rise by this factor.
MAX_SLOWDOWN = 1.05
UNLIMITED = 100  # the limit of rounds for rows that need none, far above the default of 5


@dataclass(frozen=True)
class Rival:
    """A contestant with which ours is compared.

    contestant: a module of the work load's package of contestants, such as "pyhessian", or a function of such a module,
    such as "ours.eigsh". goal: the ratio of the two times that is to be reached, see ``Row.at_most``; None if there is
    no goal. stretch: a harder goal.
    """

    contestant: str
    goal: float | None = None
    stretch: float | None = None


@dataclass(frozen=True)
class Row:
    """One row: a quantity on a work load, measured by several contestants.

    points: the number of points, or of tasks in training. quick: this number in a smoke run; 0 leaves the row out.
    at_most: if True, goals are upper limits, and ours may take at most ``goal`` times as long as the rival; if False,
    ours is to be ``goal`` times as fast. max_rounds: the largest number of rounds. gpu: if True, the row has so much
    work that it is measured on a GPU only, or where its work load is asked for by name.
    """

    workload: str
    quantity: str
    title: str
    rivals: tuple[Rival, ...]
    points: int
    quick: int = 0
    at_most: bool = False
    max_rounds: int = UNLIMITED
    gpu: bool = False

    @property
    def contestants(self) -> tuple[str, ...]:
        return ("ours", *(rival.contestant for rival in self.rivals))

    @property
    def with_before(self) -> "Row":
        """The same row, with "ours" of another checkout as the only rival."""
        return replace(self, rivals=(Rival(BEFORE, MAX_SLOWDOWN if self.at_most else 1 / MAX_SLOWDOWN),))


def _products(workload: str, *, goal: float, points: int, quick: int) -> Row:
    """A row on products, whose only goal is against the floor: the time of a product's convolutions alone.

    Ours may take at most ``goal`` times as long as the floor. The other rivals are measured for information.
    """
    others = (Rival("kept_graph"), Rival("eigenthings"), Rival("curvlinops"))
    return Row(workload, "products", "one product", (Rival("floor", goal), *others), points, quick, at_most=True)


def _training(
    workload: str,
    title: str,
    *,
    goal: float,
    points: int,
    quick: int = 0,
    rounds: int = UNLIMITED,
    stretch: float | None = None,
    gpu: bool = False,
) -> Row:
    """A row on meta-gradients, with the same goal against each of the four libraries."""
    rivals = tuple(Rival(f"libraries.{name}", goal, stretch) for name in ("plain", "higher", "torchopt", "learn2learn"))
    return Row(workload, META_GRADIENT, title, rivals, points, quick, max_rounds=rounds, gpu=gpu)


_TOP5, _EIGSH, _WITH_SHOT = "top-5 to 1e-3", Rival("ours.eigsh"), (Rival("ours.with_shot"),)
_TOP5_W2 = (
    Rival("pyhessian", goal=5, stretch=7),
    Rival("eigenthings", goal=5, stretch=7),
    Rival("curvlinops", goal=12, stretch=16),
    _EIGSH,
)
_TOP5_W3 = (Rival("pyhessian", goal=50), Rival("eigenthings", goal=30), Rival("curvlinops", goal=80), _EIGSH)
_TOP5_W1 = (Rival("pyhessian", goal=5), Rival("eigenthings", goal=1.7), Rival("curvlinops", goal=2.5))

ROWS = (
    Row("W2", "top5", _TOP5, _TOP5_W2, points=8, quick=2),
    Row("W3", "top5", _TOP5, _TOP5_W3, points=100, quick=5),
    Row("W1", "top5", _TOP5, _TOP5_W1, points=1, max_rounds=3),
    _products("W2", goal=1.5, points=32, quick=4),
    _products("W1", goal=2.5, points=1, quick=0),
    Row("W2", "trace", "trace, 100 probes", (Rival("pyhessian", goal=1.8),), points=32, quick=1, max_rounds=3),
    Row("W3", "spectrum", "whole spectra", (Rival("ours.dense", goal=3),), points=20, quick=2),
    Row("W3", "one point", "one point, 100 products", (Rival("kept_graph", goal=1),), points=1, quick=1, at_most=True),
    _training("M1", "4-conv-64 28x28", goal=1, points=4),
    _training("M2", "the same, first order", goal=1, points=4),
    _training("M3", "4-conv-64 84x84", goal=1, points=1),
    _training("M4", "ResNet-12 84x84", goal=1, points=1, rounds=3),
    Row("M1", SHOT_COST, "time with SHOT over time without, 5-shot", _WITH_SHOT, points=4),
    Row("M7", SHOT_COST, "the same, 1-shot", _WITH_SHOT, points=4),
    _training("M5", "sines, 25 tasks", goal=4, points=25, quick=25),
    _training("M6", "the same, first order", goal=4, points=25, quick=25),
    _training("M8", "4-conv-64 28x28, 64 tasks", goal=10, stretch=20, points=64, rounds=3, gpu=True),
    _training("M9", "4-conv-64 84x84, 16 tasks", goal=3, stretch=5, points=16, rounds=3, gpu=True),
    _training("M10", "ResNet-12 84x84, 8 tasks", goal=3, stretch=5, points=8, rounds=3, gpu=True),
)


def chosen_rows(only: tuple[str, ...], *, quick: bool, device: str = "cpu") -> tuple[Row, ...]:
    """The rows of a run on a device, restricted to the work loads ("W3") and quantities ("trace") in ``only``.

    Raises ValueError if a name is unknown, or if no row is left.
    """
    workloads, quantities = ({getattr(row, key) for row in ROWS} for key in ("workload", "quantity"))
    for name in only:
        if name not in workloads | quantities:
            known = ", ".join(sorted(workloads | quantities))
            raise ValueError(f"--only {name} is neither a work load nor a quantity; give some of {known}")
    # If ``only`` names no work load, all are meant; the same holds for quantities.
    workloads, quantities = workloads & {*only} or workloads, quantities & {*only} or quantities
    rows = [
        row
        for row in ROWS
        if row.workload in workloads
        and row.quantity in quantities
        and (row.quick or not quick)
        and (not row.gpu or device == "cuda" or row.workload in only)
    ]
    if not rows:
        raise ValueError(f"no row fits --only {' '.join(only)}; --quick leaves out W1, M1 to M4 and M7 to M10")
    return tuple(rows)
