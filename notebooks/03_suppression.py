# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Testing the suppression hypothesis
#
# It is said that gradient-based meta-learners adapt well because meta-training *suppresses the Hessian* along the
# inner loop. Notebook 2 saw the curvature fall in one run. This notebook takes a whole study, asks the question in a
# form that data can answer with no, and follows it through the explanations that have nothing to do with
# meta-learning.
#
# The study is `quickdraw`: drawings of five things, one of each to learn from, a small convolutional network, three
# inner steps, ten seeds (five for some learners). Its results are kept in the repository under
# `docs/results/quickdraw`. For a study of your own give its folder; `hessian-tools demo` makes one in some minutes.
# Opening takes ten seconds, and the rest of the notebook less.

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display

import analysis
from analysis import figures

# %%
study = "../docs/results/quickdraw"
ds = analysis.open_study(study)
print("learners:", *ds["learner"].values)
print("checkpoints (meta-iterations):", *ds["checkpoint"].values)

# %% [markdown]
# ## What would count?
#
# Let αρ be the step size times the curvature along the inner gradient. *Meta-training suppresses it* shall mean: in a
# trained network it is lower than in the **same network untrained**: the 95 % interval of the difference over seeds
# lies wholly below zero, and reaches at least as far as the smallest effect of interest, a tenth of the untrained
# value. This rule, with its margin, was written down before any data were seen: the study's `claims.yaml` holds it,
# and [docs/claims.md](../docs/claims.md) explains it. A claim can be *supported*, *not supported* or *inconclusive*.
#
# ## Look first

# %%
figures.alpha_rho(ds, learners=["untrained", "maml"])

# %% [markdown]
# αρ falls, most at step 0, where the network has not adapted yet.
#
# ## One number, by hand
#
# A seed is one repetition; its tasks and steps are not. So average over tasks within each seed, and take the
# difference of each trained network to its own untrained start.

# %%
measured = ds["alpha_rho"].where(ds["status"] == 1)
maml = measured.sel(learner="maml", inner_step=0).mean("task")
difference = maml.isel(checkpoint=-1) - maml.isel(checkpoint=0)
difference.round(2).values

# %% [markdown]
# Ten numbers give a mean and a Student t interval. All of them are negative here.

# %%
from analysis.statistics import mean_interval

interval = mean_interval(difference.values, confidence=0.95)
print(f"{interval.mean:.2f}, 95 % interval {interval.low:.2f} to {interval.high:.2f}")

# %% [markdown]
# ## The same from the study
#
# `open_verdicts` reads what the command `hessian-tools test` decided. A verdict knows its question, its numbers and
# its outcome, and shows itself: the value with its interval, zero in red, and the margin as thin lines.

# %%
verdicts = analysis.open_verdicts(study)
table = pd.DataFrame(verdicts)
table["verdict"] = verdicts
raw = table.query("claim == 'suppression' and comparison == 'raw'")
for verdict in raw.query("learner == 'maml'")["verdict"]:
    display(verdict)

# %% [markdown]
# The first is the number that was computed by hand. Had the story ended here, the hypothesis would be "supported". But
# what else lowers curvature?
#
# ## Null 1: training on labels that mean nothing
#
# `maml-shuffled` was meta-trained like MAML, on tasks whose labels were permuted at random. There is nothing to learn
# in them. If low curvature came from learning to learn, this network could not have it.
#
# ## Null 2: no meta-learning at all
#
# `supervised` was trained to tell all training classes apart, with no inner loop.

# %%
figures.alpha_rho(ds, learners=["untrained", "maml", "maml-shuffled", "supervised"], steps=[0, 1, 2])

# %%
figures.accuracy(ds, learners=["untrained", "maml", "maml-shuffled", "supervised"])

# %% [markdown]
# The network that learned nothing has *lower* curvature than MAML at the later steps, while its accuracy falls below
# that of the untrained one. So low curvature is no sign of having learned. The supervised network is the opposite: its
# curvature at the later steps is higher than that of the untrained network, and its accuracy is better.

# %%
for verdict in raw.query("learner in ['maml-shuffled', 'supervised']")["verdict"]:
    display(verdict)

# %% [markdown]
# ## Null 3: growing weights
#
# If all weights before a normalisation layer are doubled, the network computes the same, but the curvature with
# respect to them falls to a quarter. Weights grow in training. At *unit filter norm*, in coordinates in which every
# such filter has the norm 1, this cannot play a part.
#
# ## Null 4: a lower loss
#
# Cross-entropy bends less where the loss is low. At *equal support loss* only points are compared at which the trained
# and the untrained network have the same loss. The picture shows why that matters: it has a dot for each task, step
# and seed (a few lie above the frame).

# %%
points = ds[["alpha_rho", "support_loss"]].where(ds["status"] == 1).sel(learner="maml")
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for checkpoint, color in [(0, "#777777"), (-1, "#0072B2")]:
    part = points.isel(checkpoint=checkpoint)
    name = f"meta-iteration {int(part['checkpoint'])}"
    ax.scatter(part["support_loss"], part["alpha_rho"], s=4, color=color, alpha=0.6, label=name)
ax.set(xlabel="support loss", ylabel=r"$\alpha\rho$", xscale="log", ylim=(-3, 12))
_ = ax.legend()

# %%
columns = ["steps", "comparison", "outcome", "effect", "low", "high", "share_compared"]
rows = table.query("claim == 'suppression' and learner == 'maml'")
rows[columns].round(2)

# %% [markdown]
# `raw` is as measured. At step 0 all three comparisons support the claim, so that neither weights nor loss explain the
# fall there. At the later steps hardly any points have equal loss, and the comparison stays inconclusive: the data
# cannot tell.
#
# ## Is the gradient's direction special?
#
# "Along the inner loop" says more than "everywhere". The next claim compares how much ρ fell with how much the largest
# eigenvalue fell, and the curvature in random directions.

# %%
figures.directions(ds, learners=["maml"])

# %%
rows = table.query("claim == 'trajectory' and learner == 'maml'")
rows[["steps", "comparison", "outcome", "trained_value", "baseline_value"]].round(2)

# %% [markdown]
# The columns are relative falls: of ρ (`trained_value`) and of what it is compared with. At step 0 the largest
# eigenvalue fell at least as much as the curvature along the gradient. Much of what looks like suppression along the
# trajectory is a flattening everywhere.
#
# ## The verdict
#
# Many comparisons were made, and among many some come out by chance. The primary ones are corrected together (Holm's
# method). Three sentences sum them up:

# %%
from analysis.claims import summary

for sentence in summary(verdicts):
    print(sentence, end="\n\n")

# %% [markdown]
# An honest answer for this study: at the first step meta-training does lower the curvature along the gradient, also at
# equal loss and unit filter norm. It lowers curvature elsewhere about as much, and training on meaningless labels
# lowers it too. [docs/results/README.md](../docs/results/README.md) tells the same for photographs and for a
# regression, where the curvature *rises*.
#
# ## What next
#
# - Your own hypothesis: copy `claims.yaml`, change it *before* you measure, and pass it with `--claims`; see
#   [docs/claims.md](../docs/claims.md).
# - Your own study: `hessian-tools new mine` writes a commented file, and `analysis.run_study("mine.yaml",
#   progress=True)` runs it.
# - More seeds: `hessian-tools study mine.yaml --seeds 0 1 2 3 4` adds them to what is there. An inconclusive verdict
#   says about how many would decide.
# - [Notebook 4](04_shot.ipynb): a penalty that asks for low curvature outright.
