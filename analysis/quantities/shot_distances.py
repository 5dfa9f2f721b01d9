"""The distances that SHOT (Lee, Yoo, Kwak 2023) penalises, between the ends of few large and of many small inner steps.

The loop of T large steps is called the target, and the loop of R small steps the reference.
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from analysis.quantities.each_task import Task, each_task
from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import Sizes, task_variable
from hessian_tools.inner.gradients import support_gradient
from hessian_tools.inner.parameters import moved_part
from hessian_tools.inner.shot import DISTANCES, PROBABILITY_DISTANCES, root_mean_square

OUTPUT_MEANINGS = {
    "kl_reference_target": "KL(reference || target)",
    "kl_target_reference": "KL(target || reference)",
    "js": "Jensen-Shannon distance",
    "cross_entropy": "cross-entropy of the target under the reference",
    "squared_error": "mean squared difference",
}


def measure(points: Points) -> Values:
    """The distances D(reference, target) for T < R <= K, relative to the distance that the inner loop itself covers.

    The recorded inner loop takes K steps of size alpha. Target and reference take T and R steps of size alpha K / T and
    alpha K / R, so that both take the same total time as the recorded loop. They are compared by their outputs on the
    query set, and by their parameters. A recorded loop of one step is the target of a reference of two steps, as in
    Lee, Yoo, Kwak (2023). All distances are NaN for a learner without one step size alpha.
    """
    counts = range(1, _longest(points.trajectory.steps) + 1)
    names = [*DISTANCES, "l2"]
    if points.learner.why_no_alpha:
        shape = (len(points.thetas), len(counts) - 1, len(counts) - 1)
        return {f"shot_{name}": points.thetas.new_full(shape, torch.nan) for name in names}

    def distances(task: Task) -> Tensor:
        start, end = task.thetas[0], task.thetas[-1]
        # All loops begin with the same gradient, which is computed once.
        part = moved_part(points.learner, points.loss, device=start.device)
        first = support_gradient(points.loss, start, task.support, part=part)
        ends = [
            end if steps == points.trajectory.steps else task.adapted(steps=steps, first_gradient=first)
            for steps in counts
        ]
        with torch.no_grad():
            outputs = [points.loss.outputs(theta, task.query[0]) for theta in (*ends, start, end)]
            result = start.new_full((len(names), len(counts) - 1, len(counts) - 1), torch.nan)
            for i, name in enumerate(names):
                if name in PROBABILITY_DISTANCES and not task.has_classes:
                    continue
                distance = DISTANCES.get(name, _l2)
                *after, at_start, at_end = outputs if name in DISTANCES else [*ends, start, end]
                covered = distance(at_end, at_start)
                # ``after`` begins with the loop of 1 step. Targets of 1 to K - 1 steps are the rows of the result, and
                # references of 2 to K steps are its columns.
                for (row, target), (position, reference) in combinations(enumerate(after), 2):
                    result[i, row, position - 1] = distance(reference, target) / covered
            return result

    values = each_task(points, distances, len(names), len(counts) - 1, len(counts) - 1)
    return {f"shot_{name}": values[:, i] for i, name in enumerate(names)}


def coords(sizes: Sizes) -> Mapping[str, np.ndarray]:
    """The numbers of steps of the targets, 1 to K - 1, and of the references, 2 to K."""
    longest = _longest(sizes.steps)
    return {"shot_target": np.arange(1, longest), "shot_reference": np.arange(2, longest + 1)}


def _longest(steps: int) -> int:
    """The largest number of steps of a reference, where the inner loop has ``steps``: K, but at least 2."""
    return max(steps, 2)


def _l2(a: Tensor, b: Tensor) -> Tensor:
    # The number of entries that the inner loop moves cancels in the ratio of two such distances, so 1 serves.
    return root_mean_square(a, b, moved=1)


QUANTITY = Quantity(
    name="shot_distances",
    title="SHOT's distances over targets of T and references of R steps",
    formula="D(reference, target) / D(theta_K, theta_0) for steps of size alpha K / R and alpha K / T",
    variables=(
        *(
            task_variable(
                f"shot_{name}",
                f"{meaning} of the query outputs after T and after R steps of the same total time, divided by the same"
                " distance with the outputs at theta_K as reference and those at theta_0 as target",
                "shot_target",
                "shot_reference",
            )
            for name, meaning in OUTPUT_MEANINGS.items()
        ),
        task_variable(
            "shot_l2",
            "distance of the parameters after T and after R steps of the same total time, divided by"
            " |theta_K - theta_0|",
            "shot_target",
            "shot_reference",
        ),
    ),
    measure=measure,
    library="hessian_tools.inner.shot.DISTANCES, .root_mean_square",
    cost="no product with the Hessian; (K - 1)(K - 2) / 2 gradients and K + 2 passes over the query set for each task",
    reference="Lee, Yoo, Kwak 2023, equation 4",
    products=False,
    coords=coords,
)
