"""Optimisers without torch's compiler.

The first optimiser of a process makes torch load its compiler, nearly as long a business as `import torch` itself, to mark
four methods of the class as not to be compiled. Nobody compiles them here, so each is given itself as its marked form, which
torch takes for the answer (`torch/_compile.py`). A torch that keeps it elsewhere loads its compiler as ever.
It holds for the whole process: who compiles an optimiser beside this package has these four compiled too.
"""

from __future__ import annotations

import torch


def optimisers_without_dynamo() -> None:
    """For all optimisers of this process; as often as you like."""
    for method in vars(torch.optim.Optimizer).values():
        plain = getattr(method, "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            setattr(plain, "__dynamo_disable", plain)  # in two pieces, else Python would change the name
