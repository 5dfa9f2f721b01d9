"""The network and the images that PyHessian and its interface are compared on."""

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
