"""What papers report, with the budget they used; accuracies in %."""

PUBLISHED: dict[str, list[str]] = {
    "omniglot": [
        "| | accuracy | budget |",
        "|---|---|---|",
        "| MAML, Conv4-64 (Finn et al. 2017) | 98.7 +- 0.4 | 60 000 outer steps of 32 tasks; other classes |",
    ],
    "cifar-fs": [
        "| | accuracy | budget |",
        "|---|---|---|",
        "| MAML, Conv4-32 (as reported by Bertinetto et al. 2019) | 58.9 +- 1.9 | to convergence, 600 images a class |",
    ],
    "shot": [
        "| SHOT's difference, miniImageNet, Conv4-64, 30 000 steps (Lee et al.) | MAML | FOMAML | ANIL | BOIL | LEO |",
        "|---|---|---|---|---|---|",
        "| points | +0.09 | +0.79 | +0.20 | +0.75 | +0.15 |",
    ],
    "regression": [
        "First-order MAML by the authors' recipe is known to come to a query squared error of about 2.3 to 2.8 at",
        "epoch 100; the noise alone makes 0.09. How many outer steps an epoch has is not said; 100 are taken here.",
    ],
}
