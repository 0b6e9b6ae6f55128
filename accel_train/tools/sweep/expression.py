"""Values that follow from searched ones, such as `1 - loss.quality_weight`.

An expression is read as a syntax tree of which only arithmetic is admitted; nothing of it is ever run as Python.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Number = int | float
OPERATORS: dict[type[ast.AST], Callable[..., Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
FUNCTIONS: dict[str, Callable[..., Number]] = {"min": min, "max": max, "round": round}
ALLOWED = "numbers, names of searched keys, + - * / //, min, max and round"
LONGEST = 200
"""Characters. A longer one is nobody's arithmetic and could nest too deeply."""


@dataclass(frozen=True, slots=True)
class Expression:
    text: str
    tree: ast.expr
    names: tuple[str, ...]
    """Dotted names of the keys that it is computed from, in order."""

    def value(self, values: Mapping[str, object]) -> Number:
        """Raises ValueError where there is no such number: a division by 0, or a name that holds something else."""
        try:
            return _value(self.tree, values)
        except (ArithmeticError, TypeError) as error:
            raise ValueError(f"{self.text!r} can't be computed: {error}") from error


def parse_expression(text: str) -> Expression:
    """Raises ValueError for anything but arithmetic."""
    if len(text) > LONGEST:
        raise ValueError(f"the expression has {len(text)} characters; {LONGEST} are the most")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"{text.strip()!r} is no expression; it may hold {ALLOWED}. A tower is named, not counted: towers.text.lr"
        ) from error
    names: dict[str, None] = {}
    _check(tree, names)
    if not names:
        raise ValueError(f"{text.strip()!r} depends on no searched key; set the value in the configuration")
    return Expression(text.strip(), tree, tuple(names))


def _check(node: ast.expr, names: dict[str, None]) -> None:
    """Walks what `_value` will compute, collects the names, and refuses the rest."""
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            pass
        case ast.Name() | ast.Attribute():
            names[_dotted(node)] = None
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            _check(left, names)
            _check(right, names)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            _check(operand, names)
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as arguments, keywords=[]) if name in FUNCTIONS:
            for argument in arguments:
                _check(argument, names)
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is not admitted in an expression; it may hold {ALLOWED}")


def _value(node: ast.expr, values: Mapping[str, object]) -> Number:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name() | ast.Attribute():
            found = values[_dotted(node)]
            if isinstance(found, bool) or not isinstance(found, (int, float)):
                raise TypeError(f"{_dotted(node)} is {found!r}, which is no number")
            return found
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](_value(left, values), _value(right, values))
        case ast.UnaryOp(op=op, operand=operand):
            return OPERATORS[type(op)](_value(operand, values))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return FUNCTIONS[name](*(_value(argument, values) for argument in arguments))
        case _:
            raise AssertionError("`_check` has admitted what can't be computed")


def _dotted(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=inner, attr=name):
            return f"{_dotted(inner)}.{name}"
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is not the name of a key")
