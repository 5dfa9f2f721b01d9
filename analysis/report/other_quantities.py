"""The table of a report that shows the measured quantities which no claim judges and no other table shows."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from analysis.drawing import selection
from analysis.drawing.legend import warm_start_sentence
from analysis.drawing.style import method_label
from analysis.drawing.summary import measured
from analysis.evaluation import has_accuracy, score_name
from analysis.quantities.variants import VARIANTS
from analysis.report.page import DASH, MINUS, Child, Html, element, join, number, row, section, table
from analysis.report.scale import seed_ends
from analysis.schema import shows_training, trained_learners
from analysis.statistics import mean_interval

_EXPLORATORY = (
    "This section is exploratory: unless a row says so, no claim of the package judges these quantities; nothing about "
    "them was fixed before the runs, and nothing is corrected for their number. K is the number of inner steps, "
    "theta_0 the network before them and theta_K the network after them; H is the Hessian of the support loss, g its "
    "gradient and alpha the inner step size."
)


@dataclass(frozen=True)
class Quantity:
    """A quantity of the table: its title, a sentence on what it says, and its values by the names of its rows.

    rows: values [learner, seed, checkpoint, task, inner_step], of which the mean over ``inner_step`` is shown.
    """

    title: str
    meaning: str
    rows: Mapping[str, xr.DataArray]


def other_quantities_section(ds: xr.Dataset, *, confidence: float = 0.95) -> list[Html]:
    """The heading, an explanation and the table; empty if the study measured none of the quantities.

    As the table compares the first checkpoint with the last one, it is also empty without a trained learner or without
    checkpoint 0.
    """
    if not shows_training(ds):
        return []
    learners = trained_learners(ds)
    lines, numbers_of_seeds = [], dict[str, set[int]]()
    for quantity in quantities(ds):
        text = element("div", element("b", f"{quantity.title}."), " ", quantity.meaning)
        lines.append(element("tr", element("td", text, colspan=str(1 + len(learners))), css="quantity"))
        for name, values in quantity.rows.items():
            cells = []
            for learner in learners:
                untrained, trained = seed_ends(values.sel(learner=learner), slice(None))  # of all inner steps
                cells.append(_cell(untrained, trained, confidence))
                if untrained.size:
                    numbers_of_seeds.setdefault(learner, set()).add(untrained.size)
            lines.append(row((name, *cells), css="values"))
    if not lines:
        return []
    caption = (
        f"Each cell shows untrained \N{RIGHTWARDS ARROW} trained (meta-iteration {int(ds['checkpoint'][-1])}) and, "
        f"below, the change by training ± half the width of its {100 * confidence:g} % Student t interval over seeds. "
        "Means are over the tasks of each seed that have values before and after training, then over the seeds. "
        f"{warm_start_sentence(ds)}"
    )
    header: list[Child] = [
        "Quantity",
        *(_heading(learner, numbers_of_seeds.get(learner, set())) for learner in learners),
    ]
    return [
        section("What else was measured"),
        element("p", _EXPLORATORY),
        table(header, lines, caption=caption.rstrip(), wide=True),
    ]


def _heading(learner: str, numbers_of_seeds: set[int]) -> Html:
    """The name of a learner and the number of seeds in its column, such as '5-10 seeds' if it differs between rows."""
    counts = sorted(numbers_of_seeds)
    seeds = "no seed" if not counts else f"{counts[0]} seed{'s' * (counts[0] > 1)}"
    if len(counts) > 1:
        seeds = f"{counts[0]}{DASH}{counts[-1]} seeds"
    return join([method_label(learner), element("span", seeds, css="seeds")])


def _cell(untrained: np.ndarray, trained: np.ndarray, confidence: float) -> Child:
    """Both means over the seeds and, below them, the mean of the paired differences and its interval."""
    if not untrained.size:
        return DASH
    difference = mean_interval(trained - untrained, confidence=confidence)
    half_width = difference.half_width
    levels = f"{number(float(untrained.mean()))} \N{RIGHTWARDS ARROW} {number(float(trained.mean()))}"
    change = number(difference.mean, signed=True)
    if np.isfinite(half_width) and half_width > 0:
        # The half width has two significant digits, and the change ends at the same decimal place.
        decimals = max(0, 1 - math.floor(math.log10(half_width)))
        change = f"{difference.mean:+.{decimals}f} ± {half_width:.{decimals}f}".replace("-", MINUS)
    return element("span", levels, Html("<br>"), change, css="num")


# ---- the quantities


def quantities(ds: xr.Dataset) -> list[Quantity]:
    """The quantities of the table that the study has values of, in the order of their rows."""
    return [quantity for quantity in _all(ds) if quantity.rows]


def _all(ds: xr.Dataset) -> Iterator[Quantity]:
    """All quantities of the table, in the order of their rows. One that the study does not have has no rows."""
    yield from _curvature(ds)
    yield from _whole_inner_loop(ds)
    yield from _gauss_newton_and_eigenspaces(ds)
    yield from _departure_from_straightness(ds)


def _curvature(ds: xr.Dataset) -> Iterator[Quantity]:
    """Sizes of the Hessian at the points of the inner loop: in other coordinates, in parts, and on other losses."""
    yield Quantity(
        "Curvature along the gradient, relative to the sharpest direction",
        "rho = g'Hg / g'g divided by the largest magnitude of an eigenvalue of H, so between -1 and 1. It falls where "
        "training lowers the curvature along the gradient more than that of the sharpest direction. The claim on the "
        "trajectory compares the falls of the two means; this is the mean of the ratios of single points.",
        _by_step(ds, "rho_over_lambda_max"),
    )
    yield Quantity(
        "The whole Hessian at unit filter norm",
        "Sizes of D H D, in which each filter that a normalisation layer follows has been scaled to norm 1: its "
        "eigenvalues at both ends, its Frobenius norm and its trace. Growing weights do not lower them.",
        _rows(
            ds,
            {
                "largest eigenvalue": "lambda_max_normalised",
                "smallest eigenvalue": "lambda_min_normalised",
                "Frobenius norm": "frobenius_normalised",
                "trace": "trace_normalised",
            },
        ),
    )
    yield Quantity(
        "Curvature along rotated gradients at unit filter norm",
        "The mean of alpha v'D H D v / v'v over random vectors v that have the norm of D g in each parameter tensor.",
        _rows(ds, {"alpha rho of rotations": "rho_rotated_normalised"}, scale=ds["step_size"]),
    )
    yield Quantity(
        "Head and body",
        "H_bb and g_b are the block of H and the part of g that belong to the head, which is the last layer, or to the "
        "body, which is all the rest. Alpha rho is alpha g_b'H_bb g_b / g_b'g_b here, the ratio is |H_bb g_b| / |g_b|, "
        "and the trace is that of H_bb. They contain no curvature between head and body.",
        _rows(
            ds,
            {
                "head: alpha rho": "rho_head",
                "head: alpha |Hg| / |g|": "hg_ratio_head",
                "head: alpha tr H": "trace_head",
                "body: alpha rho": "rho_body",
                "body: alpha |Hg| / |g|": "hg_ratio_body",
                "body: alpha tr H": "trace_body",
            },
            scale=ds["step_size"],
        ),
    )
    yield Quantity(
        "Head and body at unit filter norm",
        "The same of D H D and D g, in which each filter that a normalisation layer follows has been scaled to norm 1.",
        _rows(
            ds,
            {
                "head: alpha rho": "rho_head_normalised",
                "head: alpha |Hg| / |g|": "hg_ratio_head_normalised",
                "head: alpha tr H": "trace_head_normalised",
                "body: alpha rho": "rho_body_normalised",
                "body: alpha |Hg| / |g|": "hg_ratio_body_normalised",
                "body: alpha tr H": "trace_body_normalised",
            },
            scale=ds["step_size"],
        ),
    )
    yield Quantity(
        "Curvature on other losses",
        "The same curvature on the loss of the query set in place of that of the support set (query), with the "
        "Hessian of the query loss along the gradient of the support loss (across), and with the Hessian of "
        "another task's support loss along this task's gradient (other task). The points are those of the inner "
        "loop on the support set.",
        _rows(
            ds,
            {
                f"{loss.replace('_', ' ')}: {words}": f"{name}_{loss}"
                for loss in VARIANTS
                for words, name in (
                    ("alpha rho", "alpha_rho"),
                    ("alpha |Hg| / |g|", "alpha_hg_ratio"),
                    ("largest eigenvalue", "eigenvalue_max"),
                    ("trace", "trace"),
                )
            },
        ),
    )


def _whole_inner_loop(ds: xr.Dataset) -> Iterator[Quantity]:
    """What the inner loop does as a whole: SHOT's difference, the meta-gradient, and the adapted network."""
    yield Quantity(
        "SHOT's difference and its expansion",
        "The difference between the ends of one large and of K small steps, against its expansion for small steps, "
        "(tau^2 / 2)(1/T - 1/R) H g with T = 1, R = K and tau = alpha K: the cosine between the two, and the actual "
        "length over the predicted one. Both are 1 where the expansion holds. The claim on SHOT's distance judges the "
        "cosine after training alone.",
        _of_task(ds, "cosine", "shot_direction_cosine") | _of_task(ds, "actual / predicted", "shot_direction_ratio"),
    )
    yield Quantity(
        "Length of the full meta-gradient",
        "The norm of the full meta-gradient relative to that of the first-order one, which leaves out the Hessians of "
        "the inner loop: 1 where these do not matter. The claim on the meta-gradients judges their directions alone.",
        _of_task(ds, "full / first-order", "meta_gradient_ratio"),
    )
    yield Quantity(
        "Stretch of the inner loop",
        "The largest singular value of J = d theta_K / d theta_0: the factor by which the inner loop moves two nearby "
        "starts apart at most. Below 1 it would draw all of them together. The full meta-gradient contains J, the "
        "first-order one does not.",
        _of_task(ds, "singular value", "adaptation_singular_value", singular_index=0),
    )
    yield Quantity(
        "Agreement with a prototype classifier",
        "The share of query examples to which the adapted network gives the same label as the nearest class mean of "
        "its own features. Lee, Yoo and Kwak (2023, appendix D) expect such a classifier of an inner loop without "
        "curvature.",
        _of_task(ds, "share", "prototype_agreement"),
    )
    yield Quantity(
        "Other step sizes after training",
        f"The {score_name(ds)} after K steps of another size than the learner's own, alpha. If training had only "
        "rescaled the loss, the untrained network would do as well at another step size.",
        _swept(ds),
    )


def _gauss_newton_and_eigenspaces(ds: xr.Dataset) -> Iterator[Quantity]:
    """The Gauss-Newton part of the curvature, and the eigenvectors of the largest eigenvalues."""
    yield Quantity(
        "Gauss-Newton share of the sharpest direction",
        "The share v'Gv / v'Hv of the Gauss-Newton matrix G in the eigenvalue of H that is largest in magnitude, with "
        "the eigenvector v. The rest is the curvature of the network itself; the share is near 0 where that alone "
        "makes the direction sharp.",
        _by_step(ds, "gauss_newton_share"),
    )
    yield Quantity(
        "Gauss-Newton part of alpha rho",
        "alpha g'Gg / g'g. Alpha rho, in the table of scale, is this part, which is never negative, plus that of the "
        "curvature of the network itself.",
        {name: ds["step_size"] * values for name, values in _by_step(ds, "rho_gauss_newton").items()},
    )
    # The entry j of the next two variables belongs to the span of the first j + 1 eigenvectors, the last one to that of
    # all of them.
    num = ds.sizes.get("eigen_index", 0)
    yield Quantity(
        "Gradient in the top eigenspace",
        f"The share of |g|^2 in the span of the {num} eigenvectors of H whose eigenvalues are largest in magnitude; "
        "for a random direction it is nearly 0.",
        _by_step(ds, "gradient_share", eigen_index=-1),
    )
    yield Quantity(
        "Overlap of top eigenspaces",
        f"How much of the span of these {num} eigenvectors remains in an inner step: 1 if they span the same space "
        "before and after the step, nearly 0 for unrelated spaces.",
        _by_step(ds, "subspace_overlap", at_end=False, eigen_index=-1),
    )


def _departure_from_straightness(ds: xr.Dataset) -> Iterator[Quantity]:
    """How far the inner loop departs from one without curvature, in its outputs, its path and its gradients."""
    yield Quantity(
        "Error of the linearised network",
        "How far the adapted network's outputs are from those of the network that is linear in its parameters around "
        "theta_0, relative to how far they move. 0: the inner loop is that of a linear model; 1: the linear model "
        "errs by as much as the outputs move.",
        _of_task(ds, "relative error", "linearisation_error"),
    )
    yield Quantity(
        "SHOT's distance",
        "The distance between the ends of T large steps (the target) and of R small steps (the reference) of the same "
        "total time, relative to the same distance between theta_0 and theta_K. All but the last row compare the "
        "outputs on the query set: KL is KL(reference || target), and the Jensen-Shannon distance is symmetric in "
        "both. The last row compares the parameters. Without curvature along the way, all are 0 but the cross-entropy, "
        "which contains the entropy of the reference. SHOT penalises one of them for one T and one R.",
        _shot(ds),
    )
    yield Quantity(
        "Length of the path",
        "The length of the inner loop's path relative to the distance between its ends: 1 for a straight path.",
        _of_task(ds, "ratio", "path_ratio"),
    )
    yield Quantity(
        "Cosines of the inner gradients",
        "cos(g_i, g_j) between the gradients of two inner steps: 1 if they point the same way, 0 if they are "
        "orthogonal. The alignment A, on which there is a claim, is made from all of them and from their norms.",
        _gradient_cosines(ds),
    )
    yield Quantity(
        "Fall of the gradient",
        "The norm of the gradient at theta_K relative to that at theta_0, |g_K| / |g_0|.",
        _at_end(ds, "ratio", "grad_norm_ratio"),
    )
    yield Quantity(
        "Fall of the support loss",
        "The fall of the support loss in an inner step relative to its first-order prediction, which is alpha |g|^2 "
        "for plain gradient steps: 1 without curvature, 1 - alpha rho / 2 on a quadratic, and below 0 where the step "
        "raises the loss.",
        _by_step(ds, "drop_ratio", at_end=False),
    )


def _known(ds: xr.Dataset, name: str) -> bool:
    """True if the study has values of a variable."""
    return selection.lacks(ds, name) is None


def _of_task(ds: xr.Dataset, label: str, name: str, **position: int) -> dict[str, xr.DataArray]:
    """The row of a variable that has one number for each task, with an added axis of inner steps of length 1.

    There is no row if the study lacks the variable. position: the position along a further dimension, as ``isel`` takes
    it.
    """
    return {label: measured(ds, name).isel(position).expand_dims("inner_step")} if _known(ds, name) else {}


def _by_step(ds: xr.Dataset, name: str, *, at_end: bool = True, **position: int) -> dict[str, xr.DataArray]:
    """The rows of a variable at step 0 and at the later steps; none if the study lacks it.

    position: the position along a further dimension of the variable, as ``isel`` takes it.
    at_end: False for a variable that is not defined at theta_K, from which no step is taken.
    """
    if not _known(ds, name):
        return {}
    values = measured(ds, name).isel(position).isel(inner_step=slice(None, None if at_end else -1))
    parts = {"step 0": values.isel(inner_step=slice(0, 1)), "later steps": values.isel(inner_step=slice(1, None))}
    return {label: part for label, part in parts.items() if part.sizes["inner_step"]}


def _rows(ds: xr.Dataset, variables: Mapping[str, str], scale: xr.DataArray | float = 1.0) -> dict[str, xr.DataArray]:
    """The rows of several variables, by the words for them, at step 0 and at the later steps; times ``scale``."""
    return {
        f"{words}, {steps}": scale * values
        for words, name in variables.items()
        for steps, values in _by_step(ds, name).items()
    }


def _swept(ds: xr.Dataset) -> dict[str, xr.DataArray]:
    """The scores after inner loops at the smallest and the largest multiple of alpha, and at alpha itself."""
    name = "swept_query_accuracy" if has_accuracy(ds) else "swept_query_loss"
    factors = [float(factor) for factor in ds["alpha_factor"].values] if "alpha_factor" in ds else []
    rows: dict[str, xr.DataArray] = {}
    for index, factor in enumerate(factors):
        if factor in (min(factors), 1.0, max(factors)):
            rows |= _of_task(ds, f"{factor:g} alpha".removeprefix("1 "), name, alpha_factor=index)
    return rows


def _at_end(ds: xr.Dataset, label: str, name: str) -> dict[str, xr.DataArray]:
    """The row of a variable at theta_K, after the inner loop; none if it is unknown."""
    return {label: measured(ds, name).isel(inner_step=slice(-1, None))} if _known(ds, name) else {}


def _gradient_cosines(ds: xr.Dataset) -> dict[str, xr.DataArray]:
    """The cosines of the first inner gradient with the second and with the last one; none with a single inner step."""
    last = ds.sizes.get("step_j", 1) - 1
    rows: dict[str, xr.DataArray] = {}
    for other in sorted({min(1, last), last} - {0}):
        rows |= _of_task(ds, f"g_0 and g_{other}", "gradient_cosine", step_i=0, step_j=other)
    return rows


def _shot(ds: xr.Dataset) -> dict[str, xr.DataArray]:
    """SHOT's distances: KL at the corners of the grid of T and R, and the others where T and R differ most.

    A long inner loop then has no more rows than a short one.
    """
    rows: dict[str, xr.DataArray] = {}
    # The corners are positions along the axes of T and of R: 0 is the smallest number of steps, and -1 the largest one.
    for words, name, corners in (
        ("KL", "shot_kl_reference_target", [(0, 0), (0, -1), (-1, -1)]),
        ("KL(target || reference)", "shot_kl_target_reference", [(0, -1)]),
        ("Jensen-Shannon", "shot_js", [(0, -1)]),
        ("cross-entropy", "shot_cross_entropy", [(0, -1)]),
        ("squared error", "shot_squared_error", [(0, -1)]),
        ("parameters", "shot_l2", [(0, -1)]),
    ):
        for target, reference in corners if _known(ds, name) else []:
            steps = f"T\xa0=\xa0{ds['shot_target'].values[target]}, R\xa0=\xa0{ds['shot_reference'].values[reference]}"
            rows |= _of_task(ds, f"{words}, {steps}", name, shot_target=target, shot_reference=reference)
    return rows
