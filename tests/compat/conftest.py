"""The network and the images on which PyHessian is compared with this library's PyHessian interface."""

import pytest
from cases import seeded
from pyhessian_reference import Batch, images, network
from torch import nn


@pytest.fixture
def model() -> nn.Module:
    return seeded(network)


@pytest.fixture
def data() -> Batch:
    return images()
