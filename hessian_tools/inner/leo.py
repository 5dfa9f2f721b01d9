"""LEO (latent embedding optimisation, Rusu et al. 2019): an inner loop on one latent code for each class.

The weights of the network's head are decoded from these codes.

An encoder and a relation network turn the support features into a mean and a standard deviation per class. In training
a code is drawn from that distribution; on a new task it is the mean. The codes descend the support loss through the
decoder, and then the decoded weights descend it themselves. Encoder, relation network, decoder and both step sizes are
meta-parameters, which follow the network's parameters in ``theta``.

We differ from the authors in two points. The noise of the decoded weights is drawn once per task and not at each
decoding, so that the inner loop descends one fixed function. The SHOT penalty needs this, because it compares two inner
loops of a task. Where the networks put out a number s for a standard deviation, the standard deviation is exp(s) times
that of Glorot's initialisation, and hence always positive.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from hessian_tools.inner.descent import InnerPath, inner_loop
from hessian_tools.inner.features import features
from hessian_tools.inner.gradients import Gradient, recomputed_gradient, support_gradient
from hessian_tools.inner.learners import Latent, Learner
from hessian_tools.inner.parameters import Part, further_parameters, head_weight, network_parameters, part_under
from hessian_tools.layout import ParamLayout
from hessian_tools.loss import Batch, Loss

# The matrices whose squared entries are penalised with the weight ``Latent.l2_weight``.
PENALISED = ("encoder", "relation.0", "relation.1", "relation.2", "decoder")


@dataclass(frozen=True)
class Task:
    """A task whose support set has been encoded.

    theta: the meta-parameters; ``parameters`` are LEO's own among them, by name.
    features, labels: the inputs of the network's head for the support set, and the support labels.
    mean, std: the mean and the standard deviation of each class's code, as the encoder gives them.
    start: the codes from which the inner loop starts.
    noise: the standard normal numbers with which the decoded weights are drawn.
    """

    learner: Learner
    loss: Loss
    theta: Float[Tensor, " meta"]
    parameters: Mapping[str, Tensor]
    features: Float[Tensor, "example feature"]
    labels: Int[Tensor, " example"]
    mean: Float[Tensor, "way latent"]
    std: Float[Tensor, "way latent"]
    start: Float[Tensor, "way latent"]
    noise: Float[Tensor, "way feature"]

    def weights(self, code: Float[Tensor, " code"]) -> Float[Tensor, " weight"]:
        """The head's weights as one vector, decoded from ``code``: the codes of all classes as one vector."""
        return decode(self.parameters["decoder"], code.view_as(self.start), self.noise).flatten()

    def network_with(self, weights: Float[Tensor, " weight"]) -> Float[Tensor, " param"]:
        """The network's parameters with the head's weights replaced."""
        return _weight_part(self.loss, self.theta.device).put(network_parameters(self.loss, self.theta), weights)

    def code_path(
        self, *, steps: int | None = None, first_gradient: Gradient | None = None, checkpointing: bool = False
    ) -> InnerPath:
        """The inner loop on the codes.

        steps: a number of steps other than the learner's own; the step size is then scaled to the same total time.
        first_gradient, checkpointing: see ``inner_loop``.
        """

        # All learned tensors are in the batch, because checkpointing differentiates only the start and the batch.
        def code_loss(code: Tensor, batch: Batch) -> Tensor:
            x, y, decoder, noise, bias = batch
            return self.loss.criterion(F.linear(x, decode(decoder, code.view(len(noise), -1), noise), bias), y)

        count = steps or self.learner.steps
        return inner_loop(
            code_loss,
            self.start.flatten(),
            (self.features, self.labels, self.parameters["decoder"], self.noise, _head_bias(self.loss, self.theta)),
            steps=count,
            step_size=self.parameters["step_sizes"][0] * (self.learner.steps / count),
            first_order=self.learner.first_order,
            first_gradient=first_gradient,
            checkpointing=checkpointing,
        )

    def weight_path(self, code: Float[Tensor, " code"], *, checkpointing: bool = False) -> InnerPath:
        """Fine-tuning: the inner loop on the head's weights, which starts from the weights decoded from ``code``."""

        def weight_loss(weights: Tensor, batch: Batch) -> Tensor:
            x, y, bias = batch
            return self.loss.criterion(F.linear(x, weights.view(-1, x.shape[1]), bias), y)

        return inner_loop(
            weight_loss,
            self.weights(code),
            (self.features, self.labels, _head_bias(self.loss, self.theta)),
            steps=_latent(self.learner).fine_tuning_steps,
            step_size=self.parameters["step_sizes"][1],
            first_order=self.learner.first_order,
            checkpointing=checkpointing,
        )

    def penalty(self, last_code: Float[Tensor, " code"]) -> Float[Tensor, ""]:
        """The sum of all penalties, each multiplied by its weight.

        The penalties on the codes are summed over the entries of a code and averaged over the classes.
        """
        latent = _latent(self.learner)
        # The divergence KL(N(mean, std^2) || N(0, I)) of the distribution of the codes, in closed form.
        kl = (self.mean**2 + self.std**2 - 1 - 2 * self.std.log()).sum(-1).mean() / 2
        encoder = ((last_code.detach().view_as(self.start) - self.start) ** 2).sum(-1).mean()
        l2 = torch.stack([(self.parameters[name] ** 2).sum() for name in PENALISED]).sum()
        # A row holds what one entry of a code contributes to the weights.
        rows = F.normalize(self.parameters["decoder"].T, dim=-1)
        eye = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
        orthogonality = torch.linalg.matrix_norm(rows @ rows.T - eye)
        code_penalties = latent.kl_weight * kl + latent.encoder_weight * encoder
        return code_penalties + latent.l2_weight * l2 + latent.orthogonality_weight * orthogonality


def latent_layout(latent: Latent, *, width: int) -> ParamLayout:
    """The layout of LEO's meta-parameters for ``width`` features: linear maps without bias, and two step sizes.

    The first step size is that of the steps on the codes, and the second that of fine-tuning.
    """
    h = latent.size
    shapes = {
        "encoder": (h, width),
        **{f"relation.{i}": (2 * h, 2 * h) for i in range(3)},
        "decoder": (2 * width, h),
        "step_sizes": (2,),
    }
    return ParamLayout(tuple(shapes), tuple(torch.Size(shape) for shape in shapes.values()))


def latent_parameters(learner: Learner, *, width: int, generator: torch.Generator) -> Float[Tensor, " latent_param"]:
    """LEO's initial meta-parameters: draws of Glorot's uniform distribution, and the learner's two step sizes."""
    latent = _latent(learner)
    layout = latent_layout(latent, width=width)
    # The loop draws numbers for the step sizes, too, which the learner's own values then replace.
    drawn = {
        name: (2 * torch.rand(shape, generator=generator, device="cpu") - 1) * sqrt(6 / sum(shape))
        for name, shape in zip(layout.names, layout.shapes, strict=True)
    }
    return layout.flatten(
        drawn | {"step_sizes": torch.tensor([learner.step_size, latent.fine_tuning_step_size], device="cpu")}
    )


def open_task(
    learner: Learner, loss: Loss, theta: Float[Tensor, " meta"], support: Batch, noise: torch.Generator | None
) -> Task:
    """Encode a support set.

    noise: the generator of all draws; None takes the means of codes and weights, and drops no input.
    """
    latent, (x, y) = _latent(learner), support
    inputs = features(loss, network_parameters(loss, theta), x)
    # The head's weight matrix has one row for each class.
    ways = loss.layout.unflatten(network_parameters(loss, theta))[head_weight(loss.layout)].shape[0]
    layout = latent_layout(latent, width=inputs.shape[1])
    stored = further_parameters(loss, theta)[: layout.numel]
    if len(stored) < layout.numel:
        raise ValueError(
            f"theta has {len(theta)} entries, but {learner.name} needs {layout.numel} entries after the network's"
            f" {loss.layout.numel}; append latent_parameters(learner, width={inputs.shape[1]}, generator=...)"
        )
    parameters = layout.unflatten(stored)
    encoder_inputs = inputs * _mask(inputs, latent.dropout, noise)
    mean, std = encode(parameters, encoder_inputs, y.to(inputs.device), ways=ways)
    start = mean + std * _normal(mean, noise)
    weight_noise = _normal(inputs.new_zeros(ways, inputs.shape[1]), noise)
    return Task(learner, loss, theta, parameters, inputs, y, mean, std, start, weight_noise)


def encode(
    parameters: Mapping[str, Tensor],
    inputs: Float[Tensor, "example feature"],
    labels: Int[Tensor, " example"],
    *,
    ways: int,
) -> tuple[Float[Tensor, "way latent"], Float[Tensor, "way latent"]]:
    """The mean and the standard deviation of each class's code.

    For each class, the relation network gets all pairs of an example of this class and any example. Its outputs for
    these pairs are averaged.
    """
    encoded = inputs @ parameters["encoder"].T
    count, size = encoded.shape
    pairs = torch.cat([encoded[:, None].expand(-1, count, -1), encoded[None].expand(count, -1, -1)], -1)
    hidden = torch.relu(torch.relu(pairs @ parameters["relation.0"].T) @ parameters["relation.1"].T)
    related = (hidden @ parameters["relation.2"].T).mean(1)
    members = F.one_hot(labels, ways).to(related)
    mean, log_std = ((members.T @ related) / members.sum(0)[:, None]).split(size, -1)
    # Glorot's standard deviation is sqrt(2 / (inputs + outputs)), here with ``size`` of each.
    return mean, log_std.exp() / sqrt(size)


def decode(
    decoder: Float[Tensor, "twice_feature latent"],
    codes: Float[Tensor, "way latent"],
    noise: Float[Tensor, "way feature"],
) -> Float[Tensor, "way feature"]:
    """The head's weights: their mean plus their standard deviation times ``noise``.

    The mean and the logarithm of the standard deviation are linear in the code.
    """
    width, size = noise.shape[1], codes.shape[1]
    # As in ``encode``, the numbers stand for standard deviations in units of Glorot's, sqrt(2 / (inputs + outputs)).
    mean, log_std = (codes @ decoder.T).split(width, -1)
    return mean + log_std.exp() * sqrt(2 / (width + size)) * noise


def adapted(learner: Learner, loss: Loss, theta: Float[Tensor, " meta"], support: Batch) -> Float[Tensor, " param"]:
    """The network's parameters after the loop on the codes, which starts from their means, and the fine-tuning."""
    task = open_task(learner, loss, theta, support, None)
    return task.network_with(task.weight_path(task.code_path().adapted).adapted)


def decoded_path(
    learner: Learner, loss: Loss, theta: Float[Tensor, " meta"], support: Batch, *, checkpointing: bool = False
) -> InnerPath:
    """The networks along both loops, each with the gradient of the support loss with respect to the head's weights.

    These gradients are computed in addition, because the loops themselves differentiate other functions, of the codes
    and of the decoded weights.
    """
    task = open_task(learner, loss, theta, support, None)
    codes = task.code_path(checkpointing=checkpointing).thetas
    tuned = task.weight_path(codes[-1], checkpointing=checkpointing).thetas[1:]
    points = tuple(task.network_with(weights) for weights in [*map(task.weights, codes), *tuned])
    part = _weight_part(loss, theta.device)
    gradient_at = recomputed_gradient if checkpointing else support_gradient
    return InnerPath(points, tuple(gradient_at(loss, p, support, part=part) for p in points[:-1]), part)


def _latent(learner: Learner) -> Latent:
    """LEO's settings of a learner that is known to have them."""
    assert learner.latent is not None
    return learner.latent


def _weight_part(loss: Loss, device: torch.device) -> Part:
    """The head's weight matrix as a part of the network's parameters."""
    return part_under(loss.layout, (head_weight(loss.layout),), device)


def _head_bias(loss: Loss, theta: Tensor) -> Tensor | None:
    """The head's bias [way]; None where it has none."""
    parameters = loss.layout.unflatten(network_parameters(loss, theta))
    return parameters.get(head_weight(loss.layout).removesuffix("weight") + "bias")


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers in the shape of ``like``, drawn on the CPU; zeros without a generator."""
    if generator is None:
        return torch.zeros_like(like)
    # Drawn in float64, so that a run in float32 and its check in float64 have the same noise.
    return torch.randn(like.shape, generator=generator, dtype=torch.float64, device="cpu").to(like)


def _mask(like: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """The factors of dropout: 0 with probability ``rate``, else 1 / (1 - rate); 1 without a generator."""
    if generator is None or rate == 0:
        return torch.ones_like(like)
    is_left = torch.rand(like.shape, generator=generator, dtype=torch.float64, device="cpu") >= rate
    return is_left.to(like) / (1 - rate)
