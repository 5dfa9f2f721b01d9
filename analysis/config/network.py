"""Which network a study trains."""

import re
from typing import Any, Literal

from pydantic import field_validator, model_validator

from analysis.config.base import Positive, Strict, listed
from hessian_tools.runs.manifest import digest

NETWORKS = ("conv4", "resnet12", "vit", "mlp")
IMPORT_PATH = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
NETWORK_SETTINGS = {"width": ("conv4",), "normalisation": ("conv4", "resnet12"), "hidden": ("mlp",)}


class NetworkConfig(Strict):
    """The network: conv4, resnet12, vit, mlp, or one of yours as "package.module:name".

    width is of conv4, normalisation of conv4 and resnet12, hidden (layer sizes) of mlp. options: further
    keywords of the network, such as groups, widths, residual, patch, depth, heads; of yours, all of them.
    head: the module that learners take for the head; by default the one called head, else the last with parameters.
    """

    name: str = "conv4"
    width: Positive = 64
    normalisation: Literal["batch", "group", "none"] = "batch"
    hidden: tuple[Positive, ...] = (40, 40)
    options: dict[str, Any] = {}
    head: str | None = None

    @field_validator("name")
    @classmethod
    def _known_or_imported(cls, name: str) -> str:
        if name not in NETWORKS and not re.fullmatch(IMPORT_PATH, name):
            raise ValueError(f"{name!r} is not one of {', '.join(NETWORKS)}, nor an import path package.module:name")
        return name

    @model_validator(mode="after")
    def _settings_are_of_this_network(self) -> "NetworkConfig":
        for field, names in NETWORK_SETTINGS.items():
            given, default = getattr(self, field), NetworkConfig.model_fields[field].default
            if given != default and self.name not in names:
                raise ValueError(f"{field} is a setting of {listed(names)}, not of {self.name}; {_instead(self)}")
            if field in self.options and self.name in names:
                raise ValueError(f"{field} stands beside options for {self.name}, not in them")
        if self.name == "mlp" and self.options:
            raise ValueError(f"mlp has no options, got {', '.join(self.options)}; its layers are set by hidden")
        return self

    def __hash__(self) -> int:
        return hash(digest(self.model_dump(mode="json")))


def _instead(network: NetworkConfig) -> str:
    return "leave it out" if network.name in NETWORKS else "write it under options"
