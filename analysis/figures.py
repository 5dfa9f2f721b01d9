"""The figures of a study as functions: ``analysis.figures.alpha_rho(ds, learners=["maml"], width="icml")``.

``ds`` is the Dataset of ``analysis.open_study``. Each function also has ``data(ds)``, the numbers behind the figure as
a table, ``caption(ds)``, and ``needs(ds)``, the reason why a study's figure cannot be drawn, or None. ``save`` writes a
figure to files, and ``variable(ds, name)`` is the figure of any variable over meta-training. ``forest`` takes the
verdicts of ``analysis.open_verdicts`` in place of the Dataset, such as ``figures.forest(verdicts, claims=["shot"])``.
``figures_of(ds)`` has the figures that can be drawn of a study, and ``left_out(ds)`` says why the others cannot.

>>> from analysis import figures
>>> figures.alpha_rho
<figure alpha_rho: Alpha rho, the curvature along the gradient times the step size, over meta-training.>
"""

from analysis.drawing import figures as _figures
from analysis.drawing.figures import FIGURES
from analysis.drawing.forest import forest
from hessian_tools.entries import checked

figures_of = checked(_figures.figures_of, module=__name__)
left_out = checked(_figures.left_out, module=__name__)
save = checked(_figures.save, module=__name__)
variable = checked(_figures.variable, module=__name__)
alpha_rho = FIGURES["alpha_rho"]
eigenvalues = FIGURES["eigenvalues"]
alignment = FIGURES["alignment"]
accuracy = FIGURES["accuracy"]
directions = FIGURES["directions"]
curvature_loss = FIGURES["curvature_loss"]
curvature_accuracy = FIGURES["curvature_accuracy"]
alpha_sweep = FIGURES["alpha_sweep"]
dose_response = FIGURES["dose_response"]
meta_gradients = FIGURES["meta_gradients"]
edge_of_stability = FIGURES["edge_of_stability"]
spectra = FIGURES["spectra"]
layers = FIGURES["layers"]
layer_blocks = FIGURES["layer_blocks"]
loss_surfaces = FIGURES["loss_surfaces"]

__all__ = [*FIGURES, "FIGURES", "figures_of", "forest", "left_out", "save", "variable"]
