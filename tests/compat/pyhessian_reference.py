"""The two references for this library's PyHessian interface: the installed PyHessian, and the dense Hessian."""

import copy
import warnings
from collections.abc import Callable

import pyhessian
import torch
from cases import dense_hessian, randn
from torch import Tensor, nn

import hessian_tools as ht

Batch = tuple[Tensor, Tensor]

CRITERION = nn.CrossEntropyLoss()


def network() -> nn.Module:
    """A network with layers that eval mode changes (BatchNorm with tracked statistics, Dropout) and a frozen layer."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(64, 6),
        nn.Linear(6, 3),
    )
    model[5].requires_grad_(False)
    model(torch.randn(32, 1, 6, 6))  # moves the running statistics from their initial values
    return model


def images() -> Batch:
    """Twelve random images of 6 x 6 pixels, with labels of three classes."""
    return randn(12, 1, 6, 6, stream_name="images", dtype=torch.float32), torch.arange(12) % 3


def installed_pyhessian(model: nn.Module, criterion: Callable[..., Tensor], **options: object) -> pyhessian.hessian:
    """PyHessian's object without its warning, on a copy, because it switches the mode and leaves gradients behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pyhessian.hessian(copy.deepcopy(model), criterion, cuda=False, **options)


def dense_reference(model: nn.Module, criterion: Callable[..., Tensor], data: Batch) -> Tensor:
    """The dense Hessian in eval mode, over the parameters that require gradients."""
    model = copy.deepcopy(model).eval()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    theta, layout = ht.flatten(model, where=lambda name: name in trained)
    return dense_hessian(ht.make_loss(model, criterion, layout), theta.double(), (data[0].double(), data[1]))
