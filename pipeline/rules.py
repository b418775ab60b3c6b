"""The rules of a selection: named SQL expressions over a pair's signals, as Polars expressions.

A rule sees one pair at a time. Aggregates and windows are refused: they would read the other pairs
of the shard, and how rows are cut into shards is no property of a record.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from pipeline.funnel import OWN_STEPS
from schemas.declaration import Declaration
from schemas.errors import DeclarationError
from schemas.signals import SIGNALS, columns_of

_OTHER_ROWS = frozenset(
    {"Agg", "AnonymousAgg", "Over", "Rolling", "Window", "Len", "SubPlan", "Explode"}
    | {"Rank", "Range", "Shift", "CumCount", "CumSum", "CumMin", "CumMax", "Random"}
)
"""Nodes of a Polars expression that read more than the row at hand."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of `select:`."""

    name: str
    text: str
    """SQL, as in corpus.yaml."""
    columns: tuple[str, ...]
    """The signal columns that it reads."""

    @property
    def expression(self) -> pl.Expr:
        """True keeps, False drops; null (an unknown value) drops too."""
        return pl.sql_expr(self.text).fill_null(value=False)


def compile_rules(declaration: Declaration) -> list[Rule]:
    """The rules of a corpus.yaml, in their declared order.

    Raises:
        DeclarationError: a rule cannot be read, names an unknown column, is no yes or no, or looks
            at other pairs.
    """
    kinds = {
        column: kind
        for signal in declaration.signals.names
        for column, kind in SIGNALS[signal].columns.items()
    }
    return [_compile(name, text, kinds) for name, text in declaration.select.items()]


def columns_read(rules: Iterable[Rule]) -> frozenset[str]:
    """The signal columns that a selection reads: those of its rules, and the two digests by which
    records are counted."""
    return frozenset({"sha256", "caption_sha256"}.union(*(rule.columns for rule in rules)))


def signals_read(declaration: Declaration) -> frozenset[str]:
    """The signals that a selection reads."""
    source_of = columns_of(declaration.signals.names)
    return frozenset(source_of[column] for column in columns_read(compile_rules(declaration)))


def reads_clusters(declaration: Declaration) -> bool:
    """Whether a selection looks at duplicate clusters."""
    return declaration.unique is not None or declaration.split.validation > 0


def reads_relations(declaration: Declaration) -> bool:
    """Whether a selection reads relations: for duplicate clusters, or for evaluation sets."""
    return reads_clusters(declaration) or bool(declaration.decontaminate)


def _compile(name: str, text: str, kinds: Mapping[str, pa.DataType]) -> Rule:
    where = f"select.{name} ({text!r})"
    if name in OWN_STEPS:
        raise DeclarationError(
            f"{where}: {name!r} is what the funnel calls a step of its own; name the rule otherwise"
        )
    try:
        expression = pl.sql_expr(text)
        columns = tuple(sorted(set(expression.meta.root_names())))
    except pl.exceptions.PolarsError as error:
        raise DeclarationError(
            f"{where} cannot be read: {_told(error)}. A rule is one SQL condition, for example "
            "`min_side >= 200 and aspect <= 3`"
        ) from error
    for column in columns:
        if column not in kinds:
            raise DeclarationError(f"{where}: {_unknown(column, list(kinds))}")
    _check_kind(where, expression, kinds)
    tree = json.loads(expression.meta.serialize(format="json"))
    _check_row_wise(where, tree)
    _check_chains(where, tree)
    return Rule(name, text, columns)


def _unknown(column: str, valid: list[str]) -> str:
    all_columns = columns_of(list(SIGNALS))
    if column in all_columns:
        signal = all_columns[column]
        return f"column `{column}` is written by the signal `{signal}`; declare signals.{signal}"
    near = difflib.get_close_matches(column, list(all_columns), n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"columns are {', '.join(sorted(valid))}"
    if near and near[0] not in valid:
        hint += f" (it needs signals.{all_columns[near[0]]})"
    return f"there is no column `{column}`; {hint}"


def _check_kind(where: str, expression: pl.Expr, kinds: Mapping[str, pa.DataType]) -> None:
    schema = pa.schema(list(kinds.items()))
    frame = pl.from_arrow(schema.empty_table())
    assert isinstance(frame, pl.DataFrame)
    try:
        found = frame.select(expression.alias("rule")).schema["rule"]
    except pl.exceptions.PolarsError as error:
        raise DeclarationError(
            f"{where} does not fit its columns: {_told(error)}. Compare numbers with numbers and "
            "text with text in quotes"
        ) from error
    if found != pl.Boolean:
        raise DeclarationError(
            f"{where} gives {found}, not yes or no: compare it with something, for example "
            f"`{where.partition('(')[2][1:-2]} >= 1`"
        )


def _check_row_wise(where: str, tree: Any) -> None:
    found = sorted(_OTHER_ROWS.intersection(_nodes(tree)))
    if found:
        raise DeclarationError(
            f"{where} looks at other pairs ({', '.join(found)}): a rule sees one pair at a time, "
            "so that a record's fate does not hang on its shard. Write the number itself"
        )


_ORDERED = frozenset({"Lt", "LtEq", "Gt", "GtEq"})


def _check_chains(where: str, tree: Any) -> None:
    """SQL reads `200 < width < 800` as `(200 < width) < 800`, which is always true."""
    if isinstance(tree, list):
        for item in tree:
            _check_chains(where, item)
    elif isinstance(tree, dict):
        if _compares(tree) and any(map(_compares, _sides(tree))):
            raise DeclarationError(
                f"{where} compares the answer of a comparison, which says nothing: write both "
                "sides, for example `min_side > 200 and min_side < 800`, or `between`"
            )
        for item in tree.values():
            _check_chains(where, item)


def _compares(tree: Any) -> bool:
    """Whether a node orders two values. A number with a point makes it a function of SQL's own."""
    if not isinstance(tree, dict):
        return False
    operator = tree.get("BinaryExpr", {}).get("op")
    function = tree.get("Function", {}).get("function", {})
    name = function.get("Sql", {}) if isinstance(function, dict) else {}
    return operator in _ORDERED or (isinstance(name, dict) and name.get("Binary") in _ORDERED)


def _sides(tree: dict[str, Any]) -> list[Any]:
    if "BinaryExpr" in tree:
        return [tree["BinaryExpr"]["left"], tree["BinaryExpr"]["right"]]
    return list(tree["Function"]["input"])


def _nodes(tree: Any) -> Iterator[str]:
    """The names of an expression's nodes; not its column names and constants."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, list):
        for item in tree:
            yield from _nodes(item)
    elif isinstance(tree, dict):
        for name, item in tree.items():
            yield name
            if name not in ("Column", "Literal"):
                yield from _nodes(item)


def _told(error: Exception) -> str:
    """The first line of a Polars error, which says what is wrong; the rest is the expression."""
    return re.sub(r"\s+", " ", str(error).split("\n")[0]).rstrip(".")
