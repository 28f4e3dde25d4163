"""The faults: every place of a module's syntax tree where one operator, number, text or statement can be another.

Left alone is what no test should hold: docstrings, annotations, `__all__`, decorators, and the words of errors.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}


@dataclass(frozen=True)
class Fault:
    """line: of the source, from 1. what: the change in words. apply: makes it in the tree it was found in."""

    line: int
    what: str
    apply: Callable[[], None]


def count_faults(source: str) -> int:
    return sum(1 for _ in find_faults(ast.parse(source)))


def plant(source: str, number: int) -> tuple[ast.Module, Fault]:
    """The tree of a source with its fault of this number, and the fault."""
    tree = ast.parse(source)
    fault = list(find_faults(tree))[number]
    fault.apply()
    return ast.fix_missing_locations(tree), fault


def find_faults(tree: ast.AST) -> Iterator[Fault]:
    """All faults of a tree, always in the same order. Changing the tree while looking is not allowed."""
    for node in _wanted(tree):
        yield from _in_expression(node)
        yield from _in_body(node)


def _wanted(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below, depth first, without what is left alone."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "exc"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_documentation(child):
                yield from _wanted(child)


def _is_documentation(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    is_import = isinstance(node, ast.Import | ast.ImportFrom)
    return is_import or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")


def _in_expression(node: ast.AST) -> Iterator[Fault]:
    if isinstance(node, ast.Compare):
        for index, found in enumerate(node.ops):
            yield from _swap_item(node, node.ops, index, COMPARISONS.get(type(found)))
    elif isinstance(node, ast.BinOp | ast.AugAssign):
        yield from _swap(node, "op", OPERATORS.get(type(node.op)))
    elif isinstance(node, ast.BoolOp):
        yield from _swap(node, "op", ast.Or if isinstance(node.op, ast.And) else ast.And)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield from _swap(node, "op", ast.UAdd)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield _negated(node, "operand", node.operand)
    elif isinstance(node, ast.Constant):
        yield from _other_constant(node)
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        yield _negated(node, "test", node.test)
    elif isinstance(node, ast.comprehension):
        for index, test in enumerate(node.ifs):
            yield _replaced(node.ifs, index, ast.UnaryOp(ast.Not(), test), f"not: {ast.unparse(test)}", test.lineno)
    elif isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        what = f"return {ast.unparse(node.value)} -> None"
        yield Fault(node.lineno, what, lambda: setattr(node, "value", ast.Constant(None)))


def _in_body(node: ast.AST) -> Iterator[Fault]:
    """Statements that are left out, and loops that end where they should go on."""
    for name in ("body", "orelse", "finalbody"):
        body = getattr(node, name, None)
        for index, found in enumerate(body if isinstance(body, list) else ()):
            if isinstance(found, ast.Continue | ast.Break):
                other = ast.Break() if isinstance(found, ast.Continue) else ast.Continue()
                yield _replaced(body, index, other, f"{ast.unparse(found)} -> {ast.unparse(other)}", found.lineno)
            elif isinstance(found, ast.Raise | ast.AugAssign) or (
                isinstance(found, ast.Expr) and isinstance(found.value, ast.Call)
            ):
                first = ast.unparse(found).splitlines()[0][:60]
                yield _replaced(body, index, ast.Pass(), f"without: {first}", found.lineno)


def _other_constant(node: ast.Constant) -> Iterator[Fault]:
    value = node.value
    others: dict[type, Callable[[], object]] = {
        bool: lambda: not value,
        int: lambda: value + 1,
        float: lambda: value + 1,
        str: lambda: f"XX{value}",
    }
    if type(value) in others:
        other = others[type(value)]()
        yield Fault(node.lineno, f"{value!r:.40} -> {other!r:.40}", lambda: setattr(node, "value", other))


def _swap(node: ast.AST, name: str, other: type[ast.AST] | None) -> Iterator[Fault]:
    if other is not None:
        what = f"{type(getattr(node, name)).__name__} -> {other.__name__}: {ast.unparse(node)[:60]}"
        yield Fault(node.lineno, what, lambda: setattr(node, name, other()))  # type: ignore[attr-defined]


def _swap_item(node: ast.Compare, items: list[ast.cmpop], index: int, other: type[ast.cmpop] | None) -> Iterator[Fault]:
    if other is not None:
        what = f"{type(items[index]).__name__} -> {other.__name__}: {ast.unparse(node)[:60]}"
        yield _replaced(items, index, other(), what, node.lineno)


def _negated(node: ast.AST, name: str, test: ast.expr) -> Fault:
    what = f"not: {ast.unparse(test)[:60]}"
    return Fault(test.lineno, what, lambda: setattr(node, name, ast.UnaryOp(ast.Not(), test)))


def _replaced(items: list, index: int, other: ast.AST, what: str, line: int) -> Fault:
    return Fault(line, what, lambda: items.__setitem__(index, other))
