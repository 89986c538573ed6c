"""Conditions on columns: a small part of Python's expressions, checked before it is used and evaluated on arrays."""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["number", "text", "flag", "condition"]
"""Of a value; a flag is true or false, and a condition what comparisons give."""

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
_EQUALITY: Final = (ast.Eq, ast.NotEq, *_MEMBERSHIP)
_FLAGS: Final = {"true": True, "false": False}
_DEEPEST: Final = 100
"""Levels of a condition: far below where Python's stack ends, wherever it is evaluated."""


@dataclass(frozen=True)
class Condition:
    """A checked condition: comparisons, and/or/not, + - * /, constants, `in [...]`, and columns (`a` or `a.b`)."""

    text: str
    tree: ast.expr
    names: frozenset[str]

    def holds(
        self,
        columns: Mapping[str, NDArray[Any]],
        nulls: Mapping[str, NDArray[np.bool_]] | None = None,
        *,
        unknown: bool = True,
    ) -> NDArray[np.bool_]:
        """bool[n]: for which rows it holds; `columns` has n entries for each of `names`.

        A comparison with a null is neither true nor false, and so is what hangs on it: `unknown` says what that counts
        as. nulls: bool[n] where a column is null; a column without an entry has none. float32 columns are compared as such.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            found: NDArray[np.bool_] = np.asarray(_value(self.tree, columns, nulls or {}, unknown))
        return found


def parse(text: str, columns: Mapping[str, Kind]) -> Condition:
    """Check a condition on `columns`, given by name.

    Raises:
        ValueError: it is not one; the message names the piece that is wrong, and what there is instead.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        detail = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(f"{text!r} is not an expression: {detail}") from None
    if _levels(tree) > _DEEPEST:
        raise ValueError(f"{text!r} is nested more than {_DEEPEST} levels deep")
    if _kind(tree, columns) != "condition":
        raise ValueError(f"{text!r} is not a condition: compare it with a value, e.g. n_images >= 2")
    found = (_name(node) for node in ast.walk(tree))
    names = frozenset(name for name in found if name is not None and name in columns)
    if not names:
        raise ValueError(f"{text!r} uses no column; available columns: {', '.join(columns)}")
    return Condition(text, tree, names)


def _levels(tree: ast.AST) -> int:
    """How deep an expression is nested."""
    level, count = [tree], 0
    while level:
        level, count = [child for node in level for child in ast.iter_child_nodes(node)], count + 1
    return count


def _name(node: ast.AST) -> str | None:
    """The column's name that a node spells; None for another node."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name(id=name), attr=attribute):
            return f"{name}.{attribute}"
    return None


def _kind(node: ast.expr, columns: Mapping[str, Kind]) -> Kind:
    name = _name(node)
    match node:
        case ast.BoolOp(values=values):
            for value in values:
                _expect(value, "condition", columns)
            return "condition"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _expect(operand, "condition", columns)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _expect(operand, "number", columns)
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _ARITHMETIC:
            _expect(left, "number", columns)
            return _expect(right, "number", columns)
        case ast.Compare():
            return _comparison(node, columns)
        case _ if name is not None and name in columns:
            return columns[name]
        case ast.Name(id=flag) if flag in _FLAGS:
            return "flag"
        case _ if name is not None:
            raise ValueError(f"no column {name!r}; {_instead(name, columns)}")
        case ast.Constant(value=str()):
            return "text"
        case ast.Constant(value=bool()):
            return "flag"
        case ast.Constant(value=int() | float() as value):
            if abs(value) > sys.float_info.max:
                raise ValueError(f"a number is too large: at most {sys.float_info.max:.1e}")
            return "number"
    raise ValueError(
        f"{ast.unparse(node)!r} is not allowed: a condition has comparisons, and, or, not, + - * /, numbers, "
        f"texts, in [...], and the columns {', '.join(columns)}"
    )


def _instead(name: str, columns: Mapping[str, Kind]) -> str:
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.6)
    return (f"nearest: {near[0]}; " if near else "") + f"there are {', '.join(columns)}"


def _comparison(node: ast.Compare, columns: Mapping[str, Kind]) -> Kind:
    left = node.left
    for op, right in zip(node.ops, node.comparators, strict=True):
        kind = _kind(left, columns)
        if kind == "condition":
            raise ValueError(f"{ast.unparse(left)!r} is a condition; numbers, texts, true and false are compared")
        if kind == "flag" and not isinstance(op, _EQUALITY):
            raise ValueError(f"{ast.unparse(node)!r}: true and false are compared by == or !=")
        if isinstance(op, _MEMBERSHIP):
            if not isinstance(right, ast.List | ast.Tuple) or not all(_is_constant(item) for item in right.elts):
                raise ValueError(f"{ast.unparse(right)!r}: `in` takes a list of constants, as [1, 2, 3]")
            for item in right.elts:
                _expect(item, kind, columns)
        elif type(op) in _COMPARISONS:
            _expect(right, kind, columns)
        else:
            raise ValueError(f"{ast.unparse(node)!r}: compare by <, <=, >, >=, ==, != or in")
        left = right
    return "condition"


def _is_constant(node: ast.expr) -> bool:
    inner = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(inner, ast.Constant) or (isinstance(inner, ast.Name) and inner.id in _FLAGS)


def _expect(node: ast.expr, kind: Kind, columns: Mapping[str, Kind]) -> Kind:
    found = _kind(node, columns)
    if found != kind:
        raise ValueError(f"{ast.unparse(node)!r} is a {found}; expected a {kind}")
    return kind


def _value(
    node: ast.expr, columns: Mapping[str, NDArray[Any]], nulls: Mapping[str, NDArray[np.bool_]], unknown: bool
) -> Any:
    match node:
        case ast.BoolOp(op=op, values=values):
            combine = np.logical_and if isinstance(op, ast.And) else np.logical_or
            return reduce(combine, [_value(value, columns, nulls, unknown) for value in values])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return np.logical_not(_value(operand, columns, nulls, not unknown))
        case ast.UnaryOp(operand=operand):
            return np.negative(_value(operand, columns, nulls, unknown))
        case ast.BinOp(op=op, left=left, right=right):
            return _ARITHMETIC[type(op)](*(_value(side, columns, nulls, unknown) for side in (left, right)))
        case ast.Compare():
            return _compared(node, columns, nulls, unknown)
        case ast.Constant(value=value):
            return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    name = _name(node)
    if name is not None and name in columns:
        column = columns[name]
        return column.astype(np.float64) if column.dtype.kind in "iu" else column
    assert isinstance(node, ast.Name), ast.dump(node)
    return _FLAGS[node.id]


def _compared(
    node: ast.Compare, columns: Mapping[str, NDArray[Any]], nulls: Mapping[str, NDArray[np.bool_]], unknown: bool
) -> Any:
    parts = []
    left = _value(node.left, columns, nulls, unknown)
    for op, comparator in zip(node.ops, node.comparators, strict=True):
        if isinstance(op, _MEMBERSHIP):
            items = [_value(item, columns, nulls, unknown) for item in getattr(comparator, "elts", ())]
            member = reduce(np.logical_or, [np.equal(left, item) for item in items], np.zeros(np.shape(left), np.bool_))
            parts.append(np.logical_not(member) if isinstance(op, ast.NotIn) else member)
            continue
        right = _value(comparator, columns, nulls, unknown)
        parts.append(_COMPARISONS[type(op)](left, right))
        left = right
    found = reduce(np.logical_and, parts)
    for name in nulls.keys() & {_name(part) for part in ast.walk(node)} if nulls else ():
        found = np.where(nulls[name], unknown, found)
    return found
