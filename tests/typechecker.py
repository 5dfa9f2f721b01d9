"""The check of types in tests: pytest --jaxtyping-packages=hessian_tools,typechecker.checked.

It is beartype with two differences. An int may stand where a float is expected, as PEP 484 says. And of a list one
entry is checked, which is chosen by a generator of beartype's own and not by Python's global one. Tests look at the
state of the global one, and the library takes a network that draws for one whose loss may be random.
"""

import random

_global_getrandbits = random.getrandbits
random.getrandbits = random.Random(0).getrandbits
try:
    from beartype import BeartypeConf, beartype
finally:
    random.getrandbits = _global_getrandbits

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
