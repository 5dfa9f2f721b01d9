"""The check of types in tests: pytest --jaxtyping-packages=hessian_tools,typechecker.checked.

It is beartype with two differences. First, an int may stand where a float is expected, as PEP 484 says. Second, the
generator by which beartype chooses the entry of a list that it checks is not Python's global one. Some tests compare
states of the global generator, and the library takes a loss for random if the state changes while the loss is computed.
"""

import random

_global_getrandbits = random.getrandbits
random.getrandbits = random.Random(0).getrandbits
try:
    from beartype import BeartypeConf, beartype
finally:
    random.getrandbits = _global_getrandbits

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
