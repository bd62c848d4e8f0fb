"""The checker of types and shapes in signatures that the tests install around stec."""

from beartype import BeartypeConf, beartype

# The tower: an int is a float, as PEP 484 has it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
