"""Tests that wrong arguments are refused in plain words, such as counts, states, empty batches and widths of zero.

No annotations are checked here, unlike in the last run of the tests by .ci/run, because users do not have this check.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import without_type_checks

import hessian_tools as ht
from hessian_tools.entries import checked
from hessian_tools.failures import first_line, says_enough, why_criterion_fails
from hessian_tools.inner.shot import squared_error
from hessian_tools.inner.steps import Plain
from hessian_tools.validation import check_choice, check_whole

# A script of a user. It prints a line for each call, and each call but the last has a wrong argument.
SCRIPT = """
import torch, hessian_tools as ht
H = ht.hessian(lambda t, a: (a * t**2).sum() / 2, torch.zeros(4), torch.arange(4.0))
sine, build = ht.data.open_tasks("sine-line"), lambda: ht.MLP((1, 4, 1))
maml = ht.learners.maml(1, 0.1)
for call in (
    lambda: ht.top_eigenpairs(H, k=2.5),
    lambda: ht.top_eigenpairs(H, k=2, max_matvecs=50.5),
    lambda: ht.trace(H, num_probes=2.5),
    lambda: ht.spectral_density(H, num_probes=2.5),
    lambda: ht.spectral_density(H, num_matvecs=2.5),
    lambda: ht.check_operator(H, num_probes=2.5),
    lambda: ht.learners.maml(2.5, 0.1),
    lambda: ht.Shot(target_steps=2.5),
    lambda: ht.TrainConfig(maml, sine, build, meta_batch=2.5),
    lambda: ht.meta_loss(maml, lambda t, b: (t**2).sum(), torch.zeros(3), None, None),
    lambda: ht.record(maml, lambda t, b: (t**2).sum(), torch.zeros(3), None, None),
):
    try:
        print("taken", call())
    except ValueError as error:
        print("refused", error)
model = torch.nn.Linear(2, 2)
loss, batch = ht.make_loss(model, lambda o, y: (o**2).mean(), ht.flatten(model)[1]), (torch.ones(3, 2), None)
for states in ("a.safetensors", model.state_dict(), [torch.zeros(6).numpy()], [model],
               [{k: v.numpy() for k, v in model.state_dict().items()}], [torch.zeros(6, dtype=torch.long)]):
    try:
        print("taken", ht.trajectory_from(loss, states, batch))
    except ValueError as error:
        print("refused", error)
(begun,) = ht.meta_train(ht.TrainConfig(maml, sine, build, checkpoints=(0,), folder="run"))
print(begun.theta.numel())
"""


@pytest.mark.slow
def test_wrong_arguments_in_a_script_are_each_refused_in_one_line(working_folder):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=working_folder, check=True
    )
    *refused, trained = done.stdout.splitlines()
    assert len(refused) == 17 and all(line.startswith("refused ") for line in refused)
    # The second call has 50.5 instead of 2.5. Calls 10 and 11 give a plain function where a loss is needed. The last
    # six give states of a kind that cannot be read.
    assert all("=2.5 is not a whole number; give one, such as 2" in line for line in refused[:1] + refused[2:9])
    assert refused[1].startswith("refused max_matvecs=50.5")
    assert all("ht.make_loss" in line for line in refused[9:11])
    messages_on_states = ["states='a.safetensors' must be", "one OrderedDict, not", "states=[array(", "states=[Linear(",
                 "'weight' is of type ndarray", "numbers of torch.int64"]  # fmt: skip
    assert all(said in line for said, line in zip(messages_on_states, refused[11:], strict=True))
    # The network 1-4-1 has 13 parameters.
    assert trained == "13" and (working_folder / "run" / "checkpoints").is_dir()


def test_whole_numbers_of_python_and_of_numpy_are_accepted():
    check_whole(k=3, n=np.int64(3), none=None)
    for wrong in (2.0, True, "2", float("nan"), 1e300):
        with pytest.raises(ValueError, match="is not a whole number; give one"):
            check_whole(k=wrong)


MODEL = torch.nn.Linear(2, 3)
THETA, LAYOUT = ht.flatten(MODEL)
LOSS = ht.make_loss(MODEL, torch.nn.functional.cross_entropy, LAYOUT)
X, Y = torch.ones(4, 2), torch.tensor([0, 1, 2, 0])
MAML = ht.learners.maml(2, 0.1)
UNCOUNTED = torch.full((4,), -100)  # labels that cross-entropy leaves out
HUGE = torch.full((4, 2), 1e300, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ht.hessian(LOSS, THETA, (X[:0], Y[:0])), r"a tensor of the batch has shape \(0, 2\), so it is empty"),
        (lambda: ht.gauss_newton(LOSS, THETA, [(X, Y), (X[:0], Y[:0])]), r"shape \(0, 2\), so it is empty"),
        (lambda: ht.hessian(LOSS, THETA[None], ht.ragged([(X[:0], Y[:0])])), r"shape \(0, 2\), so it is empty"),
        (lambda: ht.hessian(LOSS, THETA, (HUGE, Y)), "holds the number 1e\\+300, which float32 cannot hold"),
        (lambda: ht.hessian(LOSS, THETA, (X[:0].numpy(), Y[:0].numpy())), r"shape \(0, 2\), so it is empty"),
        (lambda: ht.adapt(MAML, LOSS, THETA, (X[:0].numpy(), Y[:0].numpy())), r"shape \(0, 2\), so it is empty"),
        (lambda: ht.gradient(LOSS, THETA, (HUGE.numpy(), Y.numpy())), "holds the number 1e\\+300"),
        (lambda: ht.hessian(LOSS, THETA, (X, UNCOUNTED)), "the batch has no label that counts"),
        (lambda: ht.gauss_newton(LOSS, THETA, (X, UNCOUNTED)), "the batch has no label that counts"),
        (lambda: ht.gradient(LOSS, THETA[None], ht.ragged([(X, UNCOUNTED)])), "the batch has no label that counts"),
        (
            lambda: ht.hessian(LOSS, THETA.expand(2, -1), (X.expand(2, 4, 2), torch.stack([Y, UNCOUNTED]))),
            "the batch has no label that counts",
        ),
        (lambda: ht.record(MAML, LOSS, THETA, (X, Y), (X[:0], Y[:0])), "is empty; give one example or more"),
        (lambda: ht.record(MAML, LOSS, THETA, (HUGE, Y), (X, Y)), "holds the number 1e\\+300"),
        (lambda: ht.adapt(MAML, LOSS, THETA, (X[:0], Y[:0])), "is empty"),
        (
            lambda: ht.adapt(MAML, LOSS, THETA[:, None], (X, Y)),
            r"theta is a tensor \[9, 1\] of float32; give a tensor \[meta\]",
        ),
        (lambda: ht.trajectory_from(LOSS, [THETA], (X[:0], Y[:0])), "is empty"),
        (lambda: ht.Conv4(5, width=0), "width=0 must be at least 1"),
        (lambda: ht.Conv4(0), "outputs=0 must be at least 1"),
        (
            lambda: ht.ResNet12(5, widths=(4, 4, 0, 4)),
            r"widths=\(4, 4, 0, 4\) must be a list, each entry a whole number, 1 or more",
        ),
        (lambda: ht.VisionTransformer(5, depth=0), "depth=0 must be at least 1"),
        (lambda: ht.MLP((1, 0, 1)), r"sizes=\(1, 0, 1\) must be a list, each entry a whole number, 1 or more"),
        (lambda: ht.stream(float("inf")), "seed=inf is not a whole number"),
        (lambda: ht.stream([2]), r"seed=\[2\] is not a whole number"),
    ],
)
def test_arguments_that_would_give_plausible_but_meaningless_numbers_are_refused(call, said):
    with without_type_checks(), pytest.raises(ValueError, match=said) as refusal:
        call()
    assert len(str(refusal.value).splitlines()) <= 2


def test_numbers_that_the_dtype_of_theta_can_hold_are_accepted_in_any_dtype():
    for theta in (THETA, THETA.double()):
        H = ht.hessian(LOSS, theta, (X.double(), Y))
        assert torch.isfinite(H.to_dense()).all()
    assert torch.isfinite(ht.hessian(LOSS, THETA.double(), (HUGE / 1e150, Y)).to_dense()).all()


def test_labels_that_do_not_count_are_accepted_where_the_loss_is_a_number():
    total = torch.nn.CrossEntropyLoss(reduction="sum")
    assert not ht.hessian_of(MODEL, total, (X, UNCOUNTED)).to_dense().any()
    ht.hessian(LOSS, THETA, (X, torch.ones(4).long()))  # equal labels that count


with without_type_checks():  # these draw random numbers, which the look at a new loss would take for its own
    H = ht.hessian(LOSS, THETA, (X, Y))
NUM_PARAMS = len(THETA)
LONGER = torch.cat([THETA, THETA[:1]])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        # The ranges of numbers.
        (lambda: ht.trace(H).interval(confidence=1.0), "confidence=1.0 must be a number between 0 and 1"),
        (lambda: ht.learners.maml(2, 0.0), "step_size=0.0 must be a finite number above 0"),
        (lambda: ht.learners.maml(2, True), "step_size=True must be"),
        (lambda: ht.top_eigenpairs(H, k=1, rtol=-1e-9), "rtol=-1e-09 must be a finite number, 0 or more"),
        (lambda: H.to_scipy(point=-1), "point=-1 must be at least 0"),
        (lambda: ht.stream(None), "seed=None is not a whole number"),
        (lambda: ht.VisionTransformer(5, depth=1001), "depth=1001 is more blocks"),
        # Objects of another kind, and one where a function that makes it belongs.
        (lambda: ht.adapt(ht.learners.Learner, LOSS, THETA, (X, Y)), "learner is the class Learner itself; give a Lea"),
        (lambda: ht.learners.maml(2, 0.1, rule=Plain), "rule is the class Plain itself"),
        (lambda: ht.seeded(MODEL, seed=0), "build is a Linear; give a function that builds a Module"),
        (lambda: ht.seeded(lambda: None, seed=0), "build gives None"),
        (lambda: ht.MLP((2, 3, 1), activation=lambda: None), "activation gives None"),
        (lambda: ht.Conv4(5, input_shape=(1, 28)), r"input_shape=\(1, 28\) must be 3 values"),
        # Tensors: dtype, number of axes, and sizes that do not agree.
        (lambda: ht.hessian(LOSS, THETA.numpy(), (X, Y)), r"give torch.from_numpy\(thetas\)"),
        (lambda: ht.hessian(LOSS, THETA.long(), (X, Y)), r"thetas is a tensor \[9\] of int64"),
        (lambda: ht.hessian(LOSS, THETA[:0], (X, Y)), r"thetas is a tensor \[0\] of float32"),
        (lambda: ht.curvature.quadrature(H, torch.ones(8, 2), num_matvecs=2), "its axis 'param' has the size 8, but H"),
        (lambda: ht.curvature.rho_normalised(THETA, THETA, LONGER), "h_d2g has shape .* but d has"),
        (
            lambda: ht.curvature.curvature_along(THETA.expand(2, -1), LONGER.expand(2, -1)),
            "axis 'param' has the size 10,",
        ),
        (lambda: ht.curvature.curvature_along(THETA[None], THETA[None].expand(2, -1)), "hg has shape .* but g has"),
        (lambda: ht.adapt(MAML, LOSS, LONGER, (X, Y)), "theta has 10 entries, but maml has 9 meta-parameters"),
        (lambda: ht.meta_loss(MAML, LOSS, LONGER, (X, Y), (X, Y)), "theta has 10 entries, but maml has 9"),
        (lambda: ht.record(MAML, LOSS, LONGER, (X, Y), (X, Y)), "theta has 10 entries, but maml has 9"),
        # Batches on which the loss fails.
        (lambda: ht.meta_loss(MAML, LOSS, THETA, (X, Y), (X[:0], Y[:0])), r"shape \(0, 2\), so it is empty"),
        (lambda: ht.gradient(LOSS, THETA, (X, Y + 5)), r"fails on batch, which holds a tensor \[4, 2\] .*: Target 5"),
        (lambda: ht.adapt(MAML, LOSS, THETA, (X[:, :1], Y)), r"the loss fails on support, which holds a tensor \[4, 1"),
        (lambda: ht.gradient(lambda theta, batch: None, THETA, (X, Y)), r"the loss gives None; loss\(theta, batch\)"),
        (
            lambda: ht.gradient(LOSS, THETA.expand(2, -1), (X.expand(2, 4, 2), (Y + 5).expand(2, 4))),
            r"holds a tensor \[4, 2\]",
        ),
        (lambda: ht.hessian_of(MODEL, LOSS.criterion, (X, Y + 5)), "the loss fails on data, which holds"),
        (lambda: ht.hessian_of(MODEL, None, (X, Y)), "with criterion=None it gets the whole batch"),
        (lambda: ht.hessian(LOSS, THETA, (X, Y + 5)).mv(THETA), r"fails on batch, which holds a tensor \[4, 2\]"),
        (lambda: ht.loss_along(H, THETA[:, None], steps=[]), "steps is empty"),
        (lambda: ht.curvature.jackknife(H, "lambda_max"), "quantity='lambda_max'"),
        (lambda: ht.curvature.jackknife(H, method="exact"), "method='exact'"),
    ],
)
def test_wrong_arguments_are_refused_at_the_entry_by_name(call, said):
    with without_type_checks(), pytest.raises(ValueError, match=said):
        call()


class Classifier(torch.nn.Linear):
    """A model that takes and returns mappings; with labels it returns its loss as well."""

    def forward(self, x, labels=None):
        logits = super().forward(x)
        loss = {} if labels is None else {"loss": torch.nn.functional.cross_entropy(logits, labels)}
        return {"logits": logits} | loss


class TakesOne(torch.nn.Linear):
    """A model that takes a whole batch and returns its loss."""

    def forward(self, batch):
        return {"loss": torch.nn.functional.cross_entropy(super().forward(batch["x"]), batch["labels"])}


ONE = torch.nn.Linear(2, 1)
F = torch.nn.functional
NAMED = {"x": X, "labels": Y}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        # The targets do not suit the criterion.
        (lambda: ht.hessian_of(MODEL, F.cross_entropy, (X, Y.float())), r"takes class numbers: give targets.long\(\)"),
        (lambda: ht.hessian_of(MODEL, torch.nn.CrossEntropyLoss(), (X, Y.int())), r"give targets.long\(\)"),
        (lambda: ht.Recorder(MODEL, F.cross_entropy, (X, Y.float())), r"targets are a tensor \[4\] of float32; this"),
        (lambda: ht.hessian_of(MODEL, F.cross_entropy, (X, F.one_hot(Y, 3))), r"give targets.float\(\)"),
        (lambda: ht.hessian_of(ONE, F.binary_cross_entropy_with_logits, (X, Y[:, None] % 2)), r"targets.float\(\)"),
        (lambda: ht.hessian_of(ONE, F.binary_cross_entropy_with_logits, [(X, Y[:, None] % 2)] * 2), r"targets.float"),
        # The outputs do not.
        (lambda: ht.hessian_of(Classifier(2, 3), F.cross_entropy, NAMED), r"entries logits .* cross_entropy\(out\['lo"),
        (lambda: ht.hessian_of(Classifier(2, 3), lambda out, _: out["loss"], NAMED), "give None as the criterion"),
        (lambda: ht.hessian_of(TakesOne(2, 3), lambda out, _: out["loss"], NAMED), "the criterion gets the labels"),
        # Outputs [4, 1] and targets [4]: torch compares each output with each target, and warns only.
        (lambda: ht.hessian_of(ONE, F.mse_loss, (X, Y.float())), r"every target; give targets of the shape \[4, 1\]"),
        (lambda: ht.hessian_of(ONE, F.mse_loss, [(X, Y.float())] * 2), "compare every output with every target"),
        (lambda: ht.gradient(lambda t, y: F.l1_loss(t[:, None], y), THETA, THETA), "compare every output with every"),
        # Something else stands where the loss or its parameters belong.
        (
            lambda: ht.hessian(MODEL, THETA, (X, Y)),
            "loss is a Linear; give a function loss.theta, batch., such as ht.mak",
        ),
        (lambda: ht.hessian(F.cross_entropy, THETA, (X, Y)), "loss is the function cross_entropy; give a function"),
        (lambda: ht.gradient(torch.nn.MSELoss(), THETA, (X, Y)), "loss is a MSELoss; give a function loss"),
        (lambda: ht.hessian(lambda theta: theta.sum(), THETA, (X, Y)), "give a function loss.theta, batch."),
        (lambda: ht.hessian(LOSS, MODEL, (X, Y)), r"thetas is a Linear; .*: theta, layout = ht.flatten\(model\)"),
        (lambda: ht.hessian(LOSS, list(MODEL.parameters()), (X, Y)), r"theta, layout = ht.flatten\(model\)"),
        (lambda: ht.trace(LOSS), "H is a Loss; give an Operator, such as"),
    ],
)
def test_mistakes_with_losses_and_targets_are_refused_with_the_remedy(call, said):
    with without_type_checks(), pytest.raises(ValueError, match=said) as refusal:
        call()
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_class_numbers_for_a_squared_error_are_refused_with_the_remedy():
    with without_type_checks(), pytest.raises(ValueError, match=r"or give this one one_hot\(targets, 3\).float\(\)"):
        ht.hessian_of(MODEL, F.mse_loss, (X[:2], Y[:2]))

    sizes = RuntimeError("The size of tensor a (3) must match the size of tensor b (2)")
    assert why_criterion_fails(torch.ones(4, 3), torch.zeros(4, 2, dtype=torch.int64), sizes) is None


def test_a_batch_in_two_arguments_is_refused_with_the_remedy():
    for call in (
        lambda: ht.hessian_of(MODEL, F.cross_entropy, X, Y),
        lambda: ht.Recorder(MODEL, F.cross_entropy, X, Y),
    ):
        with (
            without_type_checks(),
            pytest.raises(TypeError, match=r"is a single argument: give x and y as a pair, \(x, y\)"),
        ):
            call()


def test_an_error_of_a_call_with_all_its_arguments_by_position_is_not_taken_for_one_of_too_many():
    def fails(*parts):
        raise ArithmeticError("of the user's")

    with pytest.raises(ArithmeticError, match="of the user's"):
        checked(fails, module="hessian_tools.entries")(1, 2)  # it takes any number
    with pytest.raises(Exception, match="of the user's"):
        ht.gradient(fails, THETA, (X, Y))


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_losses_that_are_callable_objects_are_accepted():
    """A loss may be a module of theta and the batch, an object, or a function with further arguments."""

    class Module(torch.nn.Module):
        def forward(self, theta, batch):
            return (theta**2).sum()

    class Object:
        def __call__(self, theta, batch):
            return (theta**2).sum()

    for loss in (Module(), Object(), lambda *both: (both[0] ** 2).sum(), lambda t, b, scale=1.0: (scale * t**2).sum()):
        assert torch.equal(ht.gradient(loss, THETA, (X, Y)), 2 * THETA)
    # A target that is expanded along the outputs makes no more comparisons than there are outputs.
    assert ht.hessian_of(MODEL, F.mse_loss, (X, Y[:3].float())).shape == (9, 9)


def test_bounds_and_none_are_accepted_where_they_are_allowed():
    assert ht.top_eigenpairs(H, k=1, rtol=0.0, max_matvecs=None).values.shape == (1,)
    assert ht.trace(H, atol=None).value.shape == ()
    assert H.to_scipy(point=0).shape == (NUM_PARAMS, NUM_PARAMS)


def test_a_refusal_of_the_library_itself_stays_as_it_is_where_the_loss_fails_as_well():
    """A second reason would hide the first: the labels are wrong too, but the route is refused before they are used."""
    with without_type_checks(), pytest.raises(ValueError, match="route") as refusal:
        ht.hessian(LOSS, THETA, (X, Y + 5), route="nonsense")
    assert "the loss fails" not in str(refusal.value)


def test_only_an_error_that_the_library_raises_itself_says_enough():
    """Both errors come from a frame of the library; in one of them a call of torch has failed there."""

    def error_of(call):
        with pytest.raises((ValueError, RuntimeError)) as raised:
            call()
        return raised.value

    assert says_enough(error_of(lambda: check_choice("route", "nonsense", ("auto",))))
    assert not says_enough(error_of(lambda: squared_error(torch.ones(3), torch.ones(4))))
    batch = (torch.ones(4, 2), torch.ones(4, 7))
    with without_type_checks(), pytest.raises(ValueError, match="the loss fails on batch, which holds a tensor"):
        ht.gradient(ht.make_loss(torch.nn.Linear(2, 3), squared_error), torch.zeros(9), batch)


def test_the_first_line_of_an_error_is_its_type_if_it_has_no_message() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(AssertionError()) == "AssertionError" == first_line(AssertionError(" \n"))
