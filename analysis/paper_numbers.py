"""The numbers that the method's paper reports: Lee, Yoo, Kwak (NeurIPS 2023), arXiv 2310.02751v1.

All are accuracies in %, for 5-way tasks, except the cosines of figure 3. A pair, except in ``TRANSFER``, holds the
accuracy with one and with five support images per class. The paper does not say over how many seeds its numbers are
means. SHOT is the paper's penalty on the distance between the ends of few large inner steps (the target) and of many
small ones (the reference).
"""

from collections.abc import Mapping

Pair = tuple[float, float]

DATA = ("mini", "tiered", "Cars", "CUB")
"""The paper's data sets: miniImageNet, tieredImageNet, Stanford Cars and CUB-200-2011."""

BUDGETS: Mapping[str, str] = {
    "conv4": "conv4 of width 64, 30,000 meta-iterations of 4 tasks, tested on 10,000 tasks",
    "resnet12": "ResNet-12, 10,000 meta-iterations of 4 tasks, tested on 10,000 tasks",
}

# By learner, and by how it uses SHOT: "" (not at all), "SHOT_r" (as a penalty) or "SHOT_p" (in pre-training). The four
# pairs are those of ``DATA``.
LEARNERS: Mapping[tuple[str, str], tuple[Pair, Pair, Pair, Pair]] = {
    ("maml", ""): ((47.88, 64.81), (46.93, 66.12), (47.78, 62.24), (57.04, 72.48)),
    ("maml", "SHOT_r"): ((47.97, 66.86), (47.53, 69.08), (50.44, 64.20), (57.55, 73.38)),
    ("maml", "SHOT_p"): ((48.11, 66.35), (47.53, 68.94), (49.08, 64.84), (58.23, 73.27)),
    ("fomaml", ""): ((47.70, 64.49), (47.72, 65.25), (49.08, 67.99), (60.18, 73.18)),
    ("fomaml", "SHOT_r"): ((48.49, 64.58), (47.91, 65.92), (48.59, 68.02), (60.54, 73.89)),
    ("anil", ""): ((47.82, 63.04), (49.35, 65.82), (46.81, 61.95), (57.03, 70.93)),
    ("anil", "SHOT_r"): ((48.02, 64.40), (48.29, 66.19), (47.82, 61.00), (57.31, 71.71)),
    ("boil", ""): ((49.61, 66.45), (48.58, 69.37), (56.82, 75.18), (61.60, 75.96)),
    ("boil", "SHOT_r"): ((50.36, 66.34), (50.36, 69.20), (56.22, 75.25), (62.43, 76.77)),
}

# MAML with ResNet-12, on mini, tiered and Cars.
RESNET12: Mapping[str, tuple[Pair, Pair, Pair]] = {
    "": ((49.47, 69.12), (54.88, 71.60), (32.74, 51.99)),
    "SHOT_r": ((51.11, 69.74), (55.14, 71.71), (32.66, 52.16)),
}

# MAML trained on the first data set and tested on the second, with five support images per class. These pairs hold the
# accuracy without and with SHOT.
TRANSFER: Mapping[tuple[str, str], Pair] = {
    ("tiered", "mini"): (66.86, 70.70),
    ("mini", "tiered"): (67.96, 69.48),
    ("mini", "Cars"): (46.57, 48.42),
    ("mini", "CUB"): (56.32, 58.40),
    ("Cars", "mini"): (37.23, 40.79),
    ("Cars", "tiered"): (41.00, 42.73),
    ("CUB", "Cars"): (44.02, 44.47),
    ("Cars", "CUB"): (41.84, 43.46),
}

# MAML + SHOT_r on mini, by the name that SHOT's distance has in this library.
DISTANCES: Mapping[str, Pair] = {
    "kl_reference_target": (47.97, 66.86),
    "cross_entropy": (49.07, 66.34),
    "l2_parameters": (50.89, 66.85),
}

# MAML + SHOT_r on mini with five support images per class, by the weight of SHOT.
WEIGHTS: Mapping[float, float] = {0.0: 64.81, 1e-1: 66.86, 1e-2: 65.97, 1e-3: 66.85, 1e-4: 66.08, 1e-5: 66.81}

# MAML + SHOT_r on mini, by the numbers of steps of SHOT's target and of its reference.
STEPS: Mapping[tuple[int, int], Pair] = {(1, 3): (47.97, 66.86), (3, 6): (48.15, 66.27)}

# The untrained network on mini, and the network after training by SHOT's distance alone.
DISTANCE_ALONE: tuple[Pair, Pair] = ((21.36, 21.29), (24.62, 27.32))

# LEO on mini, without and with SHOT.
LEO: Mapping[str, Pair] = {"": (60.24, 75.27), "SHOT_r": (60.39, 75.32)}

# Figure 3, left: the mean cosine between inner steps and the displacement of the inner loop, over meta-training. These
# values are read off its curves, which belong to three inner steps; an epoch is 100 meta-iterations.
MEAN_COSINES: Mapping[str, str] = {
    "MAML": "0.49 early in training, 0.36 at epoch 100, 0.75 at epoch 140 and 0.56 to 0.70 after that",
    "MAML + SHOT": "about 0.90 from epoch 110 on",
}
