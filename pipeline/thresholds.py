"""Finds the thresholds of a selection's rules: comparisons of one signal with one number.

Read from the expression that Polars evaluates, not from the rule's text, so that what is drawn is
what decides: brackets, `between`, `not` and a number written first all come out right. The tree's
form is Polars' own and may change with it; its version is pinned, and tests hold what is read here.
Compiling a rule takes 0.1 ms.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import polars as pl

_SIGNS = {"Gt": ">", "GtEq": ">=", "Lt": "<", "LtEq": "<="}
_TURNED = {">": "<", ">=": "<=", "<": ">", "<=": ">="}
"""The sign after its two sides have changed places."""
_NEGATED = {">": "<=", ">=": "<", "<": ">=", "<=": ">"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """One comparison of a rule: what passes it lies on one side of a number."""

    rule: str
    """The rule's name."""
    column: str
    sign: str
    """`>`, `>=`, `<` or `<=`."""
    number: str
    """As SQL, exactly as the rule has it."""
    decides: bool
    """Whether failing it fails the rule; not so within an `or`."""

    @property
    def value(self) -> float:
        return float(self.number)

    @property
    def keeps_above(self) -> bool:
        return self.sign in (">", ">=")

    @property
    def text(self) -> str:
        """How it is told to people."""
        return f"{self.column} {self.sign} {self.value:.12g}"

    @property
    def expression(self) -> pl.Expr:
        """True passes, False does not; null where the signal is unknown."""
        return pl.sql_expr(f'"{self.column}" {self.sign} {self.number}')


def find_thresholds(rule: str, text: str) -> list[Threshold]:
    """The thresholds of one rule, in its order, without repeats.

    Left out are comparisons of two signals, of computed values, and for equality: they have no side
    that is kept.

    Args:
        rule: its name.
        text: SQL that `compile_rules` has accepted.
    """
    tree = json.loads(pl.sql_expr(text).meta.serialize(format="json"))
    found = (
        Threshold(rule=rule, column=column, sign=sign, number=number, decides=decides)
        for column, sign, number, decides in _walk(tree, negated=False, decides=True)
    )
    return list(dict.fromkeys(found))


def thresholds_of(rules: Mapping[str, str]) -> list[Threshold]:
    """The thresholds of all rules (name -> SQL)."""
    return [item for rule, text in rules.items() for item in find_thresholds(rule, text)]


def _walk(node: Any, *, negated: bool, decides: bool) -> Iterator[tuple[str, str, str, bool]]:
    """(column, sign, number, decides) of the comparisons that a condition is made of."""
    name, item = _open(node)
    if name == "Cast":  # `not (...)` casts to Boolean what is Boolean already
        yield from _walk(item["expr"], negated=negated, decides=decides)
    elif name == "Not":
        yield from _walk(item, negated=not negated, decides=decides)
    elif name in ("And", "Or"):
        # Both sides of an `and` must hold, and so must both of an `or` that is negated.
        both = (name == "And") != negated
        for side in item:
            yield from _walk(side, negated=negated, decides=decides and both)
    elif name in _SIGNS:
        yield from _compare(_SIGNS[name], *item, negated=negated, decides=decides)


def _open(node: Any) -> tuple[str, Any]:
    """A node's name and what is in it; an operator is named by itself, with its sides."""
    if not isinstance(node, dict) or len(node) != 1:
        return "", None
    ((name, item),) = node.items()
    if name == "BinaryExpr":
        return str(item["op"]), (item["left"], item["right"])
    if name == "Function":
        return _open_function(item)
    return name, item


def _open_function(item: Mapping[str, Any]) -> tuple[str, Any]:
    """Polars spells operators on decimal numbers as functions of its SQL."""
    function, inputs = item["function"], item["input"]
    if function == {"Boolean": "Not"}:
        return "Not", inputs[0]
    sql = function.get("Sql") if isinstance(function, dict) else None
    if isinstance(sql, dict) and "Binary" in sql and len(inputs) == 2:
        return str(sql["Binary"]), tuple(inputs)
    return "Function", item


def _compare(
    sign: str, left: Any, right: Any, *, negated: bool, decides: bool
) -> Iterator[tuple[str, str, str, bool]]:
    if _column(left) is None:
        sign, left, right = _TURNED[sign], right, left
    column, number = _column(left), _number(right)
    if column is not None and number is not None:
        yield column, _NEGATED[sign] if negated else sign, number, decides


def _column(node: Any) -> str | None:
    name, item = _open(node)
    return str(item) if name == "Column" else None


def _number(node: Any) -> str | None:
    """A constant as SQL that gives the same constant again."""
    name, item = _open(node)
    if name != "Literal":
        return None
    ((_, value),) = item.items()
    if not isinstance(value, dict) or len(value) != 1:
        return None
    ((kind, number),) = value.items()
    if kind == "Decimal":  # digits, precision, scale
        return format(Decimal(number[0]).scaleb(-number[2]), "f")
    if kind == "Int":
        return str(number)
    if kind == "Float":
        # With an exponent, as a bare 0.5 would be read as a decimal.
        told = repr(float(number))
        return told if "e" in told else f"{told}e0"
    return None
