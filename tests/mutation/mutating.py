"""Mutants of a module: its source with one node changed.

Nothing is mutated that no behaviour depends on: docstrings, annotations, decorators, log calls, the wording of errors,
names given to parts of a query.
"""

from __future__ import annotations

import ast
import copy
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "and_": "or_", "or_": "and_", "is_": "is_not"}
STATUSES = {
    "PENDING": "CLAIMED",
    "CLAIMED": "PENDING",
    "PROCESSED": "DEAD",
    "DEAD": "CANCELLED",
    "CANCELLED": "DEAD",
}
# Each of their arguments is a condition, a column or a case of its own.
PLURAL = {"where", "and_", "or_", "order_by", "coalesce", "select", "itemgetter"}
# In a chain, each of these may be forgotten.
LINKS = {"where", "order_by", "limit", "lateral", "select_from", "is_", "total_seconds"}
# What they are given would do without them, only not so well.
WRAPPERS = {
    "unseen",
    "unindexed",
    "skip_locked",
    "redacted",
    "cast",
    "sorted",
    "raw_json",
    "raw_instant",
    "list",
    "set",
}
# Their texts name a part of a query, and nothing else.
NAMING = {"label", "alias", "subquery", "lateral"}
WORDING = {"__all__", "__slots__", "logger", "msg", "message", "holder"}
UNVISITED = {"annotation", "returns", "decorator_list", "type_params", "ctx", "op", "ops"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One mistake: *file* below the package, *scope* the function, *change* what is different.

    *source* is the module's own text, *number* says which of its changes is made; None makes none.
    """

    file: str
    scope: str
    change: str
    source: str
    number: int | None

    @property
    def name(self) -> str:
        """Stable as long as the mutated line is: it has no line number."""
        return f"{self.file} {self.scope}: {self.change}"

    @property
    def module(self) -> str:
        """The dotted name of the mutated module."""
        return "prefect_claim_dispatch." + self.file.removesuffix(".py").replace("/", ".")

    def tree(self) -> ast.Module:
        """The module with the mistake in it."""
        tree = ast.parse(self.source)
        if self.number is not None:
            place, _, new = next(itertools.islice(_edits(tree), self.number, None))
            place.put(new)
        return ast.fix_missing_locations(tree)


@dataclass(slots=True)
class _Place:
    """Where a node hangs: in the field of its parent, or at *index* of a list there."""

    parent: ast.AST
    field: str
    index: int | None
    scope: str

    def put(self, node: Any) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def mutants(file: str, source: str) -> list[Mutant]:
    """All mutants of the module *file*, in the order of its lines."""
    found: list[Mutant] = []
    seen: Counter[tuple[str, str]] = Counter()
    for number, (place, change, _) in enumerate(_edits(ast.parse(source))):
        seen[place.scope, change] += 1
        times = seen[place.scope, change]
        numbered = change if times == 1 else f"{change} ({times})"
        scope = place.scope or "module"
        found.append(Mutant(file=file, scope=scope, change=numbered, source=source, number=number))
    return found


def _edits(tree: ast.Module) -> Iterator[tuple[_Place, str, Any]]:
    """What may be put where; put it only once no more edits are asked for."""
    for place, node in _places(tree, ""):
        for change, new in _changes(place, node):
            yield place, change, new


def _places(parent: ast.AST, scope: str) -> Iterator[tuple[_Place, ast.AST]]:
    """Everything that may be changed, outermost first."""
    for field, value in ast.iter_fields(parent):
        if field in UNVISITED:
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.AST) and not _is_left_alone(parent, field, node):
                yield _Place(parent, field, index, scope), node
                inner = node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else ""
                yield from _places(node, ".".join(filter(None, [scope, inner])))


def _is_left_alone(parent: ast.AST, field: str, node: ast.AST) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
            return True
        case ast.keyword(arg="strict"):  # an assertion, for the type checker and the linter
            return True
        case ast.ClassDef(bases=[ast.Name(id="Protocol")]):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="logger")))):
            return True
        case ast.Assign(targets=[ast.Name(id=name)]) if name in WORDING:
            return True
        case ast.Constant(value=str()) if isinstance(parent, ast.Call):
            # The first argument of typing's cast is a type; the names of subqueries are nobody's business.
            return _called(parent) in NAMING or (_called(parent) == "cast" and node is parent.args[0])
        case ast.Constant(value=str()) | ast.JoinedStr() if isinstance(parent, ast.JoinedStr | ast.FormattedValue):
            return True
        case _:
            return isinstance(parent, ast.Dict) and field == "keys"


def _changes(place: _Place, node: Any) -> Iterator[tuple[str, Any]]:
    match node:
        case ast.Compare():
            yield from _compared(node)
        case ast.BoolOp(op=op, values=values):
            other = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield _swap(node, _with(node, op=other))
            for value in values:
                rest = [one for one in values if one is not value]
                yield _without(value, node), rest[0] if len(rest) == 1 else _with(node, values=rest)
        case ast.UnaryOp(operand=operand):
            yield _swap(node, operand)
        case ast.BinOp(op=op) if type(op) in ARITHMETIC:
            yield _swap(node, _with(node, op=ARITHMETIC[type(op)]()))
        case ast.Call():
            yield from _called_otherwise(node)
        case _:
            yield from _changed_values(place, node)


def _changed_values(place: _Place, node: Any) -> Iterator[tuple[str, Any]]:
    match node:
        case ast.Constant(value=value):
            for other in _constants(value):
                yield f"{_text(node)} → {other!r} in {_text(place.parent)}", ast.Constant(other)
        case ast.Attribute(value=ast.Name(id="ActionStatus"), attr=status) if status in STATUSES:
            yield (
                f"{_swap(node, _with(node, attr=STATUSES[status]))[0]} in {_text(place.parent)}",
                _with(node, attr=STATUSES[status]),
            )
        case ast.IfExp(body=body, orelse=orelse):
            yield _swap(node, body)
            yield _swap(node, orelse)
        case _:
            yield from _changed_collections(place, node)


def _changed_collections(place: _Place, node: Any) -> Iterator[tuple[str, Any]]:
    match node:
        case ast.List(elts=elements) | ast.Tuple(elts=elements) if len(elements) > 1 and _is_value(place, node):
            for element in elements:
                yield _without(element, node), _with(node, elts=[one for one in elements if one is not element])
        case ast.Dict(keys=keys, values=values) if len(keys) > 1:
            for at, key in enumerate(keys):
                shorter = _with(node, keys=_less(keys, at), values=_less(values, at))
                yield _without(key or values[at], node), shorter
        case ast.JoinedStr(values=values):
            for at, value in enumerate(values):
                if isinstance(value, ast.FormattedValue):
                    yield _without(value.value, node), _with(node, values=_less(values, at))
        case ast.comprehension(ifs=[_, *_]):
            yield f"without if {_text(node.ifs[0])}", _with(node, ifs=[])
        case _:
            yield from _changed_statements(place, node)


def _changed_statements(place: _Place, node: Any) -> Iterator[tuple[str, Any]]:
    match node:
        case ast.If(test=test):
            yield f"if {_text(test)} → if True", _with(node, test=ast.Constant(True))
            yield f"if {_text(test)} → if False", _with(node, test=ast.Constant(False))
        case ast.Return(value=value) if value is not None and not _is_empty(value):
            yield f"return {_text(value)} → return None", _with(node, value=ast.Constant(None))
        case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Continue():
            yield f"delete {_text(node)}", ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield f"delete {_text(node)}", ast.Pass()
        case ast.ExceptHandler(type=kind) if kind is not None:
            yield f"except {_text(kind)} → nothing is caught", _with(node, type=ast.Tuple([], ast.Load()))
        case ast.match_case() if place.index is not None:
            yield f"without case {_text(node.pattern)}", _with(node, guard=ast.Constant(False))
        case _:
            return


def _compared(node: ast.Compare) -> Iterator[tuple[str, Any]]:
    for at, op in enumerate(node.ops):
        for other in COMPARISONS[type(op)]:
            yield _swap(node, _with(node, ops=[*node.ops[:at], other(), *node.ops[at + 1 :]]))


def _called_otherwise(node: ast.Call) -> Iterator[tuple[str, Any]]:
    name = _called(node)
    for at, keyword in enumerate(node.keywords):
        if keyword.arg not in (None, "strict"):
            yield _without(keyword, node), _with(node, keywords=_less(node.keywords, at))
    if name in PLURAL and len(node.args) > 1:
        for at, argument in enumerate(node.args):
            yield _without(argument, node), _with(node, args=_less(node.args, at))
    if name in FUNCTIONS and not (name in {"any", "all"} and isinstance(node.func, ast.Attribute)):
        func = (
            _with(node.func, attr=FUNCTIONS[name])
            if isinstance(node.func, ast.Attribute)
            else ast.Name(FUNCTIONS[name], ast.Load())
        )
        yield f"{name} → {FUNCTIONS[name]} in {_text(node)}", _with(node, func=func)
    if name in LINKS and isinstance(node.func, ast.Attribute):
        yield f"without .{name}() after {_text(node.func.value)}", node.func.value
    if name in WRAPPERS and node.args and not (name == "cast" and isinstance(node.args[0], ast.Constant)):
        yield f"without {name}() around {_text(node.args[0])}", node.args[0]


def _constants(value: Any) -> tuple[Any, ...]:
    match value:
        case bool():
            return (not value,)
        case int():
            return (value + 1, value - 1)
        case float():
            return (value + 1.0, value / 2) if value else (value + 1.0,)
        case str():
            return (f"not {value}",)
        case _:
            return ()


def _is_value(place: _Place, node: ast.List | ast.Tuple) -> bool:
    return isinstance(node.ctx, ast.Load) and not isinstance(place.parent, ast.Subscript)


def _is_empty(value: ast.expr) -> bool:
    return ast.unparse(value) in {"None", "[]", "set()", "()", "{}", "True", "False"}


def _called(node: ast.AST) -> str:
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name
        case _:
            return ""


def _with(node: Any, **fields: Any) -> Any:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _less(values: list[Any], at: int) -> list[Any]:
    return [*values[:at], *values[at + 1 :]]


def _swap(node: ast.AST, new: Any) -> tuple[str, Any]:
    return f"{_text(node)} → {_text(new)}", new


def _without(part: ast.AST, whole: ast.AST) -> str:
    return f"without {_text(part)} in {_text(whole)}"


def _text(node: ast.AST, width: int = 60) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= width else f"{text[: width // 2 - 1]}…{text[-width // 2 :]}"
