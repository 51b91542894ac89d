"""Comparisons between settings that every trial of a sweep must satisfy: `queue_length >= 2 * num_prototypes`.

The text is read into Python's syntax tree and only what is listed here is taken from it; nothing is ever evaluated.
"""

from __future__ import annotations

import ast
import itertools
import operator
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from swav_ray.config import known_keys
from swav_ray.errors import did_you_mean

Look = Callable[[str], Any]  # the value of a dotted key
LONGEST = 300  # characters
ALLOWED = "write comparisons (< <= > >= == !=) of settings, numbers, and their sums and products"
COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
COMPUTE: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Constraint:
    """A comparison, or a chain of them (`10 <= num_prototypes <= 512`).

    Args:
        text: as written.

    Raises:
        ValueError: not a comparison of settings and numbers, or a setting that is unknown or no number; in one line.
    """

    text: str
    keys: tuple[str, ...] = field(init=False)
    _chain: ast.Compare = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.text) > LONGEST:
            raise ValueError(f"is longer than {LONGEST} characters; write several")
        try:
            with warnings.catch_warnings(action="ignore"):  # of Python's, about its own syntax
                node = ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(f"{self.text!r} cannot be read; {ALLOWED}") from None
        if not isinstance(node, ast.Compare):
            raise ValueError(f"{self.text!r} compares nothing; {ALLOWED}")
        for comparison in node.ops:
            if type(comparison) not in COMPARE:
                raise ValueError(f"{self.text!r}: {ast.unparse(node)!r} is no such comparison; {ALLOWED}")
        keys = tuple(dict.fromkeys(key for operand in (node.left, *node.comparators) for key in self._keys_of(operand)))
        if not keys:
            raise ValueError(f"{self.text!r} names no setting; {ALLOWED}")
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "_chain", node)

    def holds(self, look: Look) -> bool:
        """Whether the settings satisfy it; a division by zero does not."""
        try:
            values = [_value(operand, look) for operand in (self._chain.left, *self._chain.comparators)]
        except ArithmeticError:
            return False
        pairs = itertools.pairwise(values)
        return all(COMPARE[type(op)](a, b) for op, (a, b) in zip(self._chain.ops, pairs, strict=True))

    def _keys_of(self, node: ast.expr) -> Iterator[str]:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield from self._keys_of(node.operand)
        elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTE:
            yield from self._keys_of(node.left)
            yield from self._keys_of(node.right)
        elif isinstance(node, ast.Name | ast.Attribute):
            yield self._key(node)
        else:
            raise ValueError(f"{self.text!r}: {ast.unparse(node)!r} is not allowed; {ALLOWED}")

    def _key(self, node: ast.Name | ast.Attribute) -> str:
        key, known = ast.unparse(node), known_keys()
        if key not in known:
            raise ValueError(f"{self.text!r}: the configuration has no key {key!r}{did_you_mean(key, known)}")
        if known[key].annotation not in (int, float):
            raise ValueError(f"{self.text!r}: {key} is no single number; {ALLOWED}")
        return key


def _value(node: ast.expr, look: Look) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand, look)
    if isinstance(node, ast.BinOp):
        return COMPUTE[type(node.op)](_value(node.left, look), _value(node.right, look))
    return look(ast.unparse(node))
