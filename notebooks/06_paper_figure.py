# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. A figure for a paper
#
# From a study's dataset to a PDF at the width of a column, with the curves of your choice, the numbers as a table and
# a caption. Every figure of a study is a function of its dataset, so nothing of the package needs to be edited.

# %%
import os
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt

import analysis
from analysis import figures
from analysis.drawing import style

# %% [markdown]
# The study is `quickdraw`: twelve learners, ten seeds. A small file for each seed is kept in the repository, under
# `docs/results/quickdraw`; if you installed the package with pip alone, download that folder. For a study of your own
# give its folder, such as `runs/demo`. Opening takes some ten seconds.

# %%
smoke = "HESSIAN_TOOLS_SMOKE" in os.environ  # the tests and the site open a smaller study
ds = analysis.open_study("../docs/results/" + ("cifar-fs" if smoke else "quickdraw"))
print("learners:", *ds["learner"].values)
print("seeds:", *ds["seed"].values, " checkpoints:", *ds["checkpoint"].values)

# %% [markdown]
# ## Which figures are there?

# %%
print(*figures.FIGURES.values(), sep="\n")

# %% [markdown]
# A study has data for some of them. For the others `needs` gives the reason:

# %%
{name: figure.needs(ds) for name, figure in figures.FIGURES.items() if figure.needs(ds)}

# %% [markdown]
# ## As it comes
#
# α is the inner step size, and ρ = g'Hg / g'g the curvature along the inner gradient g. A step lowers the quadratic
# model of the loss only if αρ lies below 2. The figure shows αρ over meta-training, with a panel for each inner step.

# %%
figures.alpha_rho(ds)

# %% [markdown]
# ## With my own choice
#
# `learners`, `steps` and `width` choose the curves, the panels and the width in print. A width is a number of inches
# or a name: single, double, icml, icml-full, neurips, iclr, jmlr. `labels={"maml-shot": "ours"}` gives learners other
# names in legends and captions.

# %%
mine = {"learners": ["untrained", "maml", "maml-shot"], "steps": [0, 2]}
picture = figures.alpha_rho(ds, **mine, width="icml")
picture

# %% [markdown]
# A name that the study does not have is refused with the names that it has:

# %%
try:
    figures.alpha_rho(ds, learners=["mamml"])
except ValueError as error:
    print(error)

# %% [markdown]
# ## Its caption
#
# The caption says over what the means are taken and what the bands are. Copy it, and shorten it.

# %%
print(figures.alpha_rho.caption(ds, **mine))

# %% [markdown]
# ## Its numbers
#
# The table holds what is drawn: the mean over seeds, the ends of the band, and, in further columns, the mean of every
# seed.

# %%
table = figures.alpha_rho.data(ds, **mine)
table[["quantity", "learner", "checkpoint", "inner_step", "value", "low", "high"]].head()

# %% [markdown]
# It is a pandas table, so a number for the text is one line. By how much does αρ at the first step fall over MAML's
# training?

# %%
first = table.query("learner == 'maml' and inner_step == 0")
first[["checkpoint", "value", "low", "high"]].round(2)

# %% [markdown]
# ## Change anything else
#
# A figure is a matplotlib figure. Titles, limits, lines and texts can be changed before it is saved. In
# `style.context` the new texts get the fonts of the others.

# %%
with style.context(width="icml"):
    for ax, title in zip(picture.axes, ["first step", "last step"], strict=True):
        ax.axhline(1, color="grey", linewidth=0.6, linestyle=":")
        ax.set_title(title, loc="left")
picture

# %% [markdown]
# ## To files
#
# `figures.save` writes PDF and PNG with embedded TrueType fonts, which venues ask for, and without a time stamp, so
# that the same numbers give the same file. `save_data` writes the table as CSV.

# %%
folder = Path(mkdtemp())
figures.save(picture, folder / "alpha_rho")
figures.alpha_rho.save_data(ds, folder / "alpha_rho", **mine)
sorted(path.name for path in folder.iterdir())

# %% [markdown]
# On the command line the same is
#
# ```
# hessian-tools figures docs/results/quickdraw --only alpha_rho --width icml --format pdf csv \
#     --learners untrained maml maml-shot --steps 0 2
# ```
#
# ## A figure that the package does not have
#
# `figures.variable(ds, "theta_norm")` makes a figure of any variable over meta-training. It is called like the others,
# with the same choices: `figures.variable(ds, "theta_norm")(ds, width="icml")`. A quantity of your own is drawn in this
# way, too. For anything else there is matplotlib.
#
# The dataset is an `xarray.Dataset` with named dimensions: learner, seed, checkpoint, task, inner step. Average over
# tasks first and over seeds last. Here |Hg| / |g| along the inner loop, before and after meta-training, with a line
# for each seed.

# %%
ratio = ds["hg_ratio"].sel(learner="maml").where(ds["status"].sel(learner="maml") == 1).mean("task")
with style.context(width="icml", height=2.0):
    fig, axes = plt.subplots(1, 2, sharey=True)
    for ax, checkpoint in zip(axes, [0, -1], strict=True):
        ax.plot(ratio["inner_step"], ratio.isel(checkpoint=checkpoint).T, color="#0072B2", linewidth=0.8)
        ax.set(xlabel="inner step", xticks=ratio["inner_step"])
        ax.set_title(f"meta-iteration {ratio['checkpoint'].values[checkpoint]}", loc="left")
    axes[0].set_ylabel("|Hg| / |g|")

# %% [markdown]
# ## What next
#
# - The spread over seeds that these bands show decides the verdicts of notebook 3.
# - [docs/results/README.md](../docs/results/README.md) says what this study found.
# - `hessian-tools compare A B` puts the same figure of several studies side by side.
