"""Decides which objects that a study names, such as networks and functions, may be used, and finds them.

Importing a module runs its code, and a study may come from a stranger. So nothing that a study names is imported unless
the user trusts the study, by ``--trust`` or ``trust=True``. The networks of this library and the modules of
``torch.nn``, which a study may use in any case, are not looked for: they are loaded already.
"""

from typing import Any

from torch import nn

from analysis.errors import UserError
from hessian_tools import nets
from hessian_tools.importing import import_object

NETWORKS = (nets.Conv4, nets.ResNet12, nets.VisionTransformer, nets.MLP)
# The objects that need no trust, by their import paths: our networks, and the classes of modules of torch. Only classes
# of torch's own package ``modules`` count; what else ``torch.nn`` holds may do anything when it is called.
HARMLESS: dict[str, Any] = {
    **{f"hessian_tools.nets:{kind.__name__}": kind for kind in NETWORKS},
    **{
        f"torch.nn:{name}": value
        for name, value in vars(nn).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__.startswith("torch.nn.modules.")
    },
}


def trusted_object(target: str, *, trust: bool) -> Any:
    """The object that a study names by ``"package.module:name"`` or ``"path/to/file.py:name"``.

    trust: whether a module or file that the study names may be imported, which runs its code.

    Raises UserError, and imports nothing, where the object needs trust and there is none. Raises ValueError where the
    object cannot be found.
    """
    if target in HARMLESS:
        return HARMLESS[target]
    if not trust:
        raise UserError(
            f"{target[:200]} is not part of this library, and importing it runs its code; if you trust the study,"
            " add --trust (trust=True in Python)"
        )
    return import_object(target)
