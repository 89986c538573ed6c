"""Conditions on samples: a small part of Python's expressions, checked before it is used and evaluated on arrays."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["number", "text", "condition"]

COLUMNS: Final[dict[str, Kind]] = {
    "key": "text",
    "record_id": "text",
    "n_images": "number",
    "text_chars": "number",
    "min_similarity": "number",
    "max_similarity": "number",
    "tokens": "number",
    "images": "number",
    "text_tokens": "number",
}
"""The columns that a condition may name. The shard's index has key, record_id, n_images, text_chars and, over the
sample's images, the least and the largest similarity (where none is scored NaN, to which only != holds);
tokens, images and text_tokens are what the encoded sample has."""

_ARITHMETIC: Final = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.true_divide}
_COMPARISONS: Final = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}
_MEMBERSHIP: Final = (ast.In, ast.NotIn)


@dataclass(frozen=True)
class Condition:
    """A checked condition: comparisons, and/or/not, + - * /, constants, `in [...]`, and columns."""

    text: str
    tree: ast.expr
    names: frozenset[str]

    def holds(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """bool[n]: for which samples it holds; `columns` has n entries for each of `names`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found: NDArray[np.bool_] = np.asarray(_value(self.tree, columns))
        return found


def parse(text: str) -> Condition:
    """Check a condition.

    Raises:
        ValueError: it is not one; the message names the piece that is wrong, and what there is instead.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        detail = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(f"{text!r} is not an expression: {detail}") from None
    if _kind(tree) != "condition":
        raise ValueError(f"{text!r} is no condition: compare it with something, as n_images >= 2")
    names = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    if not names:
        raise ValueError(f"{text!r} names no column; there are {', '.join(COLUMNS)}")
    return Condition(text, tree, names)


def _kind(node: ast.expr) -> Kind:
    match node:
        case ast.BoolOp(values=values):
            for value in values:
                _expect(value, "condition")
            return "condition"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _expect(operand, "condition")
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _expect(operand, "number")
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _ARITHMETIC:
            _expect(left, "number")
            return _expect(right, "number")
        case ast.Compare():
            return _comparison(node)
        case ast.Name(id=name) if name in COLUMNS:
            return COLUMNS[name]
        case ast.Name(id=name):
            raise ValueError(f"no column {name!r}; there are {', '.join(COLUMNS)}")
        case ast.Constant(value=str()):
            return "text"
        case ast.Constant(value=value) if isinstance(value, int | float) and not isinstance(value, bool):
            return "number"
    raise ValueError(
        f"{ast.unparse(node)!r} is not allowed: a condition has comparisons, and, or, not, + - * /, numbers, "
        f"texts, in [...], and the columns {', '.join(COLUMNS)}"
    )


def _comparison(node: ast.Compare) -> Kind:
    left = node.left
    for op, right in zip(node.ops, node.comparators, strict=True):
        kind = _kind(left)
        if kind == "condition":
            raise ValueError(f"{ast.unparse(left)!r} is a condition; numbers and texts are compared")
        if isinstance(op, _MEMBERSHIP):
            if not isinstance(right, ast.List | ast.Tuple) or not all(_is_constant(item) for item in right.elts):
                raise ValueError(f"{ast.unparse(right)!r}: `in` takes a list of constants, as [1, 2, 3]")
            for item in right.elts:
                _expect(item, kind)
        elif type(op) in _COMPARISONS:
            _expect(right, kind)
        else:
            raise ValueError(f"{ast.unparse(node)!r}: compare by <, <=, >, >=, ==, != or in")
        left = right
    return "condition"


def _is_constant(node: ast.expr) -> bool:
    return isinstance(node.operand if isinstance(node, ast.UnaryOp) else node, ast.Constant)


def _expect(node: ast.expr, kind: Kind) -> Kind:
    found = _kind(node)
    if found != kind:
        raise ValueError(f"{ast.unparse(node)!r} is a {found}; here stands a {kind}")
    return kind


def _value(node: ast.expr, columns: Mapping[str, NDArray[Any]]) -> Any:
    match node:
        case ast.BoolOp(op=op, values=values):
            combine = np.logical_and if isinstance(op, ast.And) else np.logical_or
            return reduce(combine, [_value(value, columns) for value in values])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return np.logical_not(_value(operand, columns))
        case ast.UnaryOp(operand=operand):
            return np.negative(_value(operand, columns))
        case ast.BinOp(op=op, left=left, right=right):
            return _ARITHMETIC[type(op)](_value(left, columns), _value(right, columns))
        case ast.Compare():
            return _compared(node, columns)
        case ast.Name(id=name):
            column = columns[name]
            return column.astype(np.float64) if COLUMNS[name] == "number" else column
        case ast.Constant(value=value):
            return float(value) if isinstance(value, int) else value
    raise AssertionError(ast.dump(node))


def _compared(node: ast.Compare, columns: Mapping[str, NDArray[Any]]) -> Any:
    parts = []
    left = _value(node.left, columns)
    for op, comparator in zip(node.ops, node.comparators, strict=True):
        if isinstance(op, _MEMBERSHIP):
            items = [_value(item, columns) for item in getattr(comparator, "elts", ())]
            member = np.isin(left, np.asarray(items)) if items else np.zeros(np.shape(left), np.bool_)
            parts.append(np.logical_not(member) if isinstance(op, ast.NotIn) else member)
            continue
        right = _value(comparator, columns)
        parts.append(_COMPARISONS[type(op)](left, right))
        left = right
    return reduce(np.logical_and, parts)
