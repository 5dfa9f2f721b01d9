"""Beartype with a random generator of its own: pytest --jaxtyping-packages=hessian_tools,typechecker.beartype.

Of a list it checks one entry, which it otherwise chooses by Python's global generator. Tests look at the state of that
generator, and the library takes a drawing network for one whose loss may be random.
"""

import random

_global_getrandbits = random.getrandbits
random.getrandbits = random.Random(0).getrandbits
try:
    from beartype import beartype
finally:
    random.getrandbits = _global_getrandbits

__all__ = ["beartype"]
