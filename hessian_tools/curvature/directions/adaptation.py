"""The Jacobian of an inner loop, d theta_K / d theta_0, as an operator.

    theta_{k+1} = theta_k - a_k g(theta_k)   gives   J = (I - a_{K-1} H_{K-1}) ... (I - a_0 H_0)

The a_k are step sizes, and g and H_k are the gradient of the support loss and its Hessian at theta_k. A second-order
meta-gradient contains J: the gradient of the query loss in theta_0 is J' times the gradient in theta_K. A first-order
learner takes J = I. Each factor is symmetric where a_k is one number, but the product of the factors is not.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from hessian_tools.curvature.operators.composite import Derived
from hessian_tools.curvature.operators.operator import Operator, scipy_operator
from hessian_tools.torch_fixes.precision import full_precision


@dataclass(frozen=True, repr=False)
class AdaptationJacobian:
    """The Jacobian J of one trajectory [param, param] or of several tasks [task, param, param].

    It is made by :func:`adaptation_jacobian`. Use ``J @ V`` and ``J.T @ V`` for V [param], [param, probe] or
    [task, param, probe], and ``J.mv(v)`` and ``J.rmv(v)`` for one vector for each task. A product costs one
    Hessian-vector product for each step.

    factors: H_0 ... H_{K-1}, each at one point of every task. step_sizes: a_0 ... a_{K-1}. single: True for one
    trajectory without a task axis. transposed: True for J'.
    """

    factors: tuple[Operator, ...]
    step_sizes: Float[Tensor, "task step param_or_1"]
    single: bool
    transposed: bool = False

    def __repr__(self) -> str:
        tasks = "1 task" if self.single else f"{self.num_tasks} tasks"
        about = f"{tasks}, {self.steps} steps, {self.num_params} parameters" + ", transposed" * self.transposed
        return f"AdaptationJacobian({about}, {str(self.dtype).removeprefix('torch.')}, {self.device})"

    @property
    def num_params(self) -> int:
        """The number of rows and of columns."""
        return self.factors[0].num_params

    @property
    def num_tasks(self) -> int | None:
        """The number of trajectories; None for a single one."""
        return None if self.single else len(self.step_sizes)

    @property
    def steps(self) -> int:
        """The number of inner steps K."""
        return len(self.factors)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix, which V must have as well."""
        return self.factors[0].dtype

    @property
    def device(self) -> torch.device:
        """The device of the matrix, on which V must lie."""
        return self.factors[0].device

    @property
    def shape(self) -> tuple[int, ...]:
        """(param, param), or (task, param, param)."""
        tasks = () if self.single else (len(self.step_sizes),)
        return (*tasks, self.num_params, self.num_params)

    @property
    def T(self) -> "AdaptationJacobian":
        """The transpose."""
        return replace(self, transposed=not self.transposed)

    @property
    def gram(self) -> "AdaptationGram":
        """J'J as a symmetric operator for top_eigenpairs, spectral_density and trace; its trace is |J|_F^2."""
        return AdaptationGram(self)

    def __matmul__(self, V: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """``torch.matmul(self.to_dense(), V)``. Raises ValueError if V does not fit."""
        self._check(V)
        if V.ndim == 1:
            return (self @ V[:, None])[..., 0]
        product = self.products(V.expand(len(self.step_sizes), *V.shape[-2:]))
        return product[0] if self.single and V.ndim == 2 else product

    @full_precision
    def mv(self, v: Float[Tensor, "*task param"]) -> Float[Tensor, "*task param"]:
        """J v for one vector for each task: v [task, param], or [param] for the same vector at every task."""
        return (self @ v[..., None])[..., 0]

    @full_precision
    def rmv(self, v: Float[Tensor, "*task param"]) -> Float[Tensor, "*task param"]:
        """J'v for one vector for each task; v is as for :meth:`mv`."""
        return self.T.mv(v)

    def to_dense(self) -> Float[Tensor, "*task param param"]:
        """The matrix itself, from num_params products with each factor."""
        return self @ torch.eye(self.num_params, dtype=self.dtype, device=self.device)

    def to_scipy(self, *, task: int = 0) -> LinearOperator:
        """The Jacobian of one task as a SciPy operator, with its transpose."""
        if not 0 <= task < len(self.step_sizes):
            raise ValueError(f"task={task}, but this Jacobian has tasks 0 to {len(self.step_sizes) - 1}")
        jacobian = self.select(torch.tensor([task], device="cpu"))
        return scipy_operator(self, jacobian.products, jacobian.T.products)

    def select(self, tasks: Int[Tensor, " chosen"]) -> "AdaptationJacobian":
        """The Jacobians of the chosen tasks, in the order given."""
        factors = tuple(factor.select(tasks) for factor in self.factors)
        return replace(self, factors=factors, step_sizes=self.step_sizes[tasks.to(self.device)], single=False)

    @full_precision
    def products(self, V: Float[Tensor, "task param probe"]) -> Float[Tensor, "task param probe"]:
        """Each task's J, or J' if transposed, times that task's columns."""
        steps = zip(self.factors, self.step_sizes.unbind(1), strict=True)
        for H, a in reversed(list(steps)) if self.transposed else steps:
            # (I - diag(a) H)' = I - H diag(a): the order matters where each parameter has its own step size.
            V = V - (H.products(a[..., None] * V) if self.transposed else a[..., None] * H.products(V))
        return V

    def _check(self, V: Tensor) -> None:
        """Raises ValueError for a V of another dtype, device or shape than the products need."""
        if (V.dtype, V.device) != (self.dtype, self.device):
            raise ValueError(
                f"V is {V.dtype} on {V.device}, but the Jacobian is {self.dtype} on {self.device}; "
                f"write V.to({str(self.device)!r}, {self.dtype})"
            )
        tasks = len(self.step_sizes)
        # The axis of parameters is the last but one, or the only one. An axis of tasks may have the length 1.
        if V.ndim not in (1, 2, 3) or V.shape[-2:][0] != self.num_params or (V.ndim == 3 and len(V) not in (1, tasks)):
            raise ValueError(
                f"V has shape {list(V.shape)}, but the Jacobian has {list(self.shape)}; "
                f"give V of shape [{self.num_params}, probe] or [{tasks}, {self.num_params}, probe]"
            )


@dataclass(frozen=True, repr=False)
class AdaptationGram(Derived):
    """J'J of an adaptation Jacobian; made by ``J.gram``. A product costs two Hessian-vector products for each step.

    What other operators call points are the tasks here: there is one matrix J'J for each task.
    """

    jacobian: AdaptationJacobian

    @property
    def source(self) -> Operator:
        """The Hessian of the first step. ``Derived`` takes the size, the dtype and the device from it.

        They are the same for the Hessians of all steps.
        """
        return self.jacobian.factors[0]

    @property
    def num_points(self) -> int | None:
        """The number of tasks; None for a single trajectory."""
        return self.jacobian.num_tasks

    @property
    def at_once(self) -> int:
        """The number of tasks whose data fit in memory together, at least one.

        ``at_once`` of a factor is the number of points for which the data of one step fit. The data of all steps are in
        memory at the same time, so this number is divided by the number of steps.
        """
        return max(1, min(H.at_once for H in self.jacobian.factors) // self.jacobian.steps)

    @full_precision
    def products(self, V: Float[Tensor, "task param probe"]) -> Float[Tensor, "task param probe"]:
        """J'(J V)."""
        return self.jacobian.T.products(self.jacobian.products(V))

    def announce(self, num_products: int) -> None:
        """Tells every factor how many products with it will follow, so that it takes the quickest engine for them.

        These are two for each product with J'J: one for J and one for J'.
        """
        for factor in self.jacobian.factors:
            factor.announce(2 * num_products)

    def select(self, points: Int[Tensor, " chosen"]) -> "AdaptationGram":
        """J'J of the chosen tasks."""
        if self.num_points is None:
            raise ValueError("a single trajectory has no tasks to select; make the Jacobian with steps=K")
        return AdaptationGram(self.jacobian.select(points))


def adaptation_jacobian(
    H: Operator, step_size: float | Float[Tensor, "..."], *, steps: int | None = None
) -> AdaptationJacobian:
    """The Jacobian d theta_K / d theta_0 = (I - a H_{K-1}) ... (I - a H_0) of gradient descent on one batch per task.

    H: the Hessian of the support loss at the K points *from* which the steps were taken, theta_0 ... theta_{K-1};
    the adapted point is not among them. steps: the number K for several trajectories, whose points come in task-major
    order [task, step]; None if all points are one trajectory. step_size: a number, or a tensor [step], [task, step],
    or [task, step, param] with a step size for each parameter. The formula holds where the loss is twice differentiable
    along the loop; with ReLU and max-pooling that is at almost every theta_0.
    Raises ValueError for points or step sizes that do not fit.

    >>> from hessian_tools.curvature import hessian
    >>> a = torch.tensor([2.0, -1.0])
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(3, 2), a, shared=True)
    >>> adaptation_jacobian(H, 0.1).to_dense()  # diag(0.8, 1.1) cubed
    tensor([[0.5120, 0.0000],
            [0.0000, 1.3310]])
    """
    points = H.num_points
    if points is None:
        raise ValueError(
            "H has a single point and no axis of steps; make it from thetas [step, param], even for one step"
        )
    K = points if steps is None else steps
    if K < 1 or points % K:
        raise ValueError(
            f"steps={steps} does not divide the {points} points of H; give the number of inner steps of each task"
        )
    tasks = points // K
    sizes = torch.as_tensor(step_size, dtype=H.dtype, device="cpu").detach().to(H.device)
    if tuple(sizes.shape) not in [(), (K,), (tasks, K), (tasks, K, H.num_params)]:
        raise ValueError(
            f"step_size has shape {list(sizes.shape)}; give a number, [{K}], [{tasks}, {K}] or "
            f"[{tasks}, {K}, {H.num_params}]"
        )
    sizes = sizes if sizes.ndim == 3 else sizes[..., None]
    factors = tuple(H.select(torch.arange(k, points, K, device="cpu")) for k in range(K))
    return AdaptationJacobian(factors, sizes.expand(tasks, K, sizes.shape[-1]), single=steps is None)
