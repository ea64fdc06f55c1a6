"""Which input columns each output column of a step is computed from.

The step is applied to empty stand-ins of its inputs, each under a marker alias, and Spark's analysis of the
result is read from what ``explain`` prints. Every attribute in it carries an id that is unique in the plan
(``name#12``), so an output column is followed from operator to operator down to the markers. The text leaves
literals unquoted: where that makes it ambiguous, the columns concerned get no entry rather than a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from pipeline_assets.spark.plan_tree import PlanNode, explain_text, parse_tree

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

ColumnLineage = dict[str, tuple[tuple[str, str], ...]]

_MARKER = "__lineage_"
# Operators whose output is that of their one input.
_PASSING = frozenset(
    {
        "CollectMetrics",
        "Deduplicate",
        "DeduplicateWithinWatermark",
        "Distinct",
        "EventTimeWatermark",
        "Filter",
        "GlobalLimit",
        "LocalLimit",
        "Offset",
        "RebalancePartitions",
        "Repartition",
        "RepartitionByExpression",
        "ResolvedHint",
        "Sample",
        "Sort",
        "Subquery",
        "SubqueryAlias",
        "Tail",
        "UnresolvedHint",
        "View",
    }
)
_ID = re.compile(r"#(\d+)")
_ITEM_END = re.compile(r"#(\d+)L?(?=, |$)")
# What follows the id of a column with a watermark: its delay.
_WATERMARK = re.compile(r"(#\d+L?)-T\d+ms\b")
_SUBQUERY = re.compile(r"\b(?:scalar-subquery|list|exists|lateral-subquery)#\d+ \[")
# Ids that are no attributes: lambda variables, results of Python functions, subqueries.
_OTHER_IDS = re.compile(r"\blambda \w+#\d+L?|\)#\d+L?|\b(?:scalar-subquery|list|exists|lateral-subquery)#\d+")

Origins = frozenset[tuple[str, str]]


class _NotUnderstoodError(Exception):
    """The plan has something in it that this module does not know."""


@dataclass(frozen=True)
class _Attribute:
    """One output column of an operator: its text (``name#12``), its id, and where it comes from, if known."""

    token: str
    id: int
    origins: Origins | None


_Scope = list[_Attribute]


def column_lineage(
    transform: Callable[[Mapping[str, DataFrame]], DataFrame],
    inputs: Mapping[str, StructType],
    spark: SparkSession,
    streams: Collection[str] = (),
) -> ColumnLineage | None:
    """Return, per output column, the (input DataFrame, column) pairs that it is computed from, sorted.

    An output column that takes nothing from an input (a literal, ``count(*)``) has an empty tuple; one whose
    origin is not understood is left out; None when nothing could be understood. Conditions of filters and
    joins do not count, the keys of a window do, those of an aggregation where a column shows them. No Spark
    job runs. ``streams``: which of the inputs are to be streaming DataFrames.

    What ``transform`` raises is passed on: it would raise the same on the real inputs. A ``transform`` that
    registers temp views under the inputs' names leaves views of the empty stand-ins behind in ``spark``.
    """
    names = list(inputs)
    stand_ins = {
        name: (_endless if name in streams else _empty)(spark, inputs[name]).alias(f"{_MARKER}{index}")
        for index, name in enumerate(names)
    }
    frame = transform(stand_ins)
    try:
        root = _analyzed_plan(explain_text(frame, "extended"))
        reader = _PlanReader([(name, inputs[name].names) for name in names])
        scope = reader.scope(root)
        columns = frame.schema.names
        if len(scope) != len(columns):
            raise _NotUnderstoodError("the columns of the plan are not those of the DataFrame")
    except _NotUnderstoodError:
        return None
    # A join's result may have two columns of one name: their origins are told together.
    by_name: dict[str, list[Origins | None]] = {}
    for column, attribute in zip(columns, scope, strict=True):
        same = attribute.token.startswith(f"{column}#")
        by_name.setdefault(column, []).append(attribute.origins if same else None)
    united = {column: _united(origins) for column, origins in by_name.items()}
    return {column: tuple(sorted(origins)) for column, origins in united.items() if origins is not None} or None


def _empty(spark: SparkSession, schema: StructType) -> DataFrame:
    from pyspark.sql import SparkSession as ClassicSession
    from pyspark.sql.classic.dataframe import DataFrame as ClassicDataFrame

    if not isinstance(spark, ClassicSession):
        return spark.createDataFrame([], schema)
    # What createDataFrame comes to, without its import of pandas and PyArrow.
    session: Any = spark._jsparkSession
    rows = spark.sparkContext._jsc.emptyRDD().rdd()
    return ClassicDataFrame(session.applySchemaToPythonRDD(rows, schema.json()), spark)


def _endless(spark: SparkSession, schema: StructType) -> DataFrame:
    """Return a streaming DataFrame that is never started, whose operator on top lists plain columns."""
    from pyspark.sql import functions as F  # noqa: N812

    nulls = [F.lit(None).cast(field.dataType).alias(field.name) for field in schema.fields]
    return spark.readStream.format("rate").load().select(*nulls).select("*")


def _analyzed_plan(text: str) -> PlanNode:
    lines = text.splitlines()
    if "== Analyzed Logical Plan ==" not in lines:
        raise _NotUnderstoodError("there is no analyzed plan")
    start = lines.index("== Analyzed Logical Plan ==") + 1
    plan = list(takewhile(lambda line: line != "== Optimized Logical Plan ==", lines[start:]))
    # The first line lists names and types. A name with a line break in it would shift the rest.
    root = parse_tree(_WATERMARK.sub(r"\1", line) for line in plan[1:] if line)
    if root is None or re.search(r"\.\.\. \d+ more fields", text):
        raise _NotUnderstoodError("the plan is not complete")
    return root


class _PlanReader:
    """Finds the output columns of operators. ``inputs``: name and columns, by the number of their marker."""

    def __init__(self, inputs: Sequence[tuple[str, Sequence[str]]]) -> None:
        self._inputs = inputs
        self._shared: dict[str, _Scope] = {}

    def scope(self, node: PlanNode) -> _Scope:
        """Return the output columns of ``node``, in order."""
        if node.name == "SubqueryAlias" and node.arguments.startswith(_MARKER):
            return self._stand_in(node)
        if node.name in _PASSING and len(node.children) == 1:
            return self.scope(node.children[0])
        read = {
            "Project": self._project,
            "Aggregate": self._aggregate,
            "Window": self._window,
            "Generate": self._generate,
            "Expand": self._expand,
            "Join": self._join,
            "Union": self._by_position,
            "Intersect": self._by_position,
            "Except": self._by_position,
            "WithCTE": self._with_cte,
            "CTERelationRef": self._cte_reference,
            "LateralJoin": self._lateral_join,
            "OneRowRelation": self._no_columns,
        }.get(node.name)
        if read is not None:
            return read(node)
        if node.children:
            raise _NotUnderstoodError(node.text)
        return self._other_data(node)

    def _stand_in(self, node: PlanNode) -> _Scope:
        name, columns = self._inputs[int(node.arguments.removeprefix(_MARKER))]
        if len(node.children) != 1:
            raise _NotUnderstoodError(node.text)
        pattern = ", ".join(rf"{re.escape(column)}#(\d+)L?" for column in columns)
        found = re.search(rf"\[{pattern}\]", node.children[0].text)
        if found is None:
            raise _NotUnderstoodError(node.children[0].text)
        return [
            _Attribute(f"{column}#{found[place]}", int(found[place]), frozenset({(name, column)}))
            for place, column in enumerate(columns, start=1)
        ]

    def _project(self, node: PlanNode) -> _Scope:
        return self._computed(_inside(node.arguments), self.scope(_only_child(node)), node.subqueries)

    def _aggregate(self, node: PlanNode) -> _Scope:
        arguments = node.arguments
        # [keys], [columns]; without keys there is one list.
        for found in re.finditer(r"\], \[", arguments):
            if _balanced(arguments[1 : found.start()]):
                arguments = arguments[found.end() - 1 :]
                break
        return self._computed(_inside(arguments), self.scope(_only_child(node)), node.subqueries)

    def _window(self, node: PlanNode) -> _Scope:
        below = self.scope(_only_child(node))
        for found in re.finditer(r"\], \[|\]$", node.arguments):
            if _balanced(node.arguments[1 : found.start()]):
                return below + self._computed(node.arguments[1 : found.start()], below, node.subqueries)
        raise _NotUnderstoodError(node.text)

    def _generate(self, node: PlanNode) -> _Scope:
        below = self.scope(_only_child(node))
        generator, bracket, outputs = node.arguments.rpartition(" [")
        if not bracket:
            raise _NotUnderstoodError(node.text)
        origins = _origins(generator, _by_id(below))
        columns = _tokens(_inside(f"[{outputs}"))
        return below + [_Attribute(token, number, origins) for token, number in columns]

    def _expand(self, node: PlanNode) -> _Scope:
        below = _by_id(self.scope(_only_child(node)))
        rows, bracket, outputs = node.arguments.rpartition("]], [")
        columns = _tokens(_inside(f"[{outputs}"))
        values = [row.split(", ") for row in rows.removeprefix("[[").split("], [")]
        if not bracket or any(len(row) != len(columns) for row in values):
            raise _NotUnderstoodError(node.text)
        return [
            below.get(number) or _Attribute(token, number, _united(_origins(row[place], below) for row in values))
            for place, (token, number) in enumerate(columns)
        ]

    def _join(self, node: PlanNode) -> _Scope:
        kind = re.match(r"Inner|Cross|LeftOuter|RightOuter|FullOuter|LeftSemi|LeftAnti", node.arguments)
        if kind is None or len(node.children) != 2:
            raise _NotUnderstoodError(node.text)
        left = self.scope(node.children[0])
        return left if kind[0] in ("LeftSemi", "LeftAnti") else left + self.scope(node.children[1])

    def _by_position(self, node: PlanNode) -> _Scope:
        scopes = [self.scope(child) for child in node.children]
        if not scopes or len({len(scope) for scope in scopes}) != 1:
            raise _NotUnderstoodError(node.text)
        if node.name == "Except":
            return scopes[0]
        return [
            _Attribute(same[0].token, same[0].id, _united(attribute.origins for attribute in same))
            for same in zip(*scopes, strict=True)
        ]

    def _with_cte(self, node: PlanNode) -> _Scope:
        *definitions, main = node.children
        for definition in definitions:
            number = re.match(r"\d+", definition.arguments)
            if definition.name != "CTERelationDef" or number is None:
                raise _NotUnderstoodError(definition.text)
            self._shared[number[0]] = self.scope(_only_child(definition))
        return self.scope(main)

    def _cte_reference(self, node: PlanNode) -> _Scope:
        found = re.fullmatch(r"(\d+), \w+, \[(.*)\](?:, \w+)*", node.arguments)
        shared = self._shared.get(found[1]) if found else None
        columns = _tokens(found[2]) if found else []
        if shared is None or len(shared) != len(columns):
            raise _NotUnderstoodError(node.text)
        return [
            _Attribute(token, number, attribute.origins)
            for (token, number), attribute in zip(columns, shared, strict=True)
        ]

    def _lateral_join(self, node: PlanNode) -> _Scope:
        if len(node.subqueries) != 1:
            raise _NotUnderstoodError(node.text)
        return self.scope(_only_child(node)) + self.scope(node.subqueries[0])

    def _other_data(self, node: PlanNode) -> _Scope:
        """Read a leaf that is no stand-in: values written into the query, or data that it fetches itself."""
        found = re.search(r"\[([^\[\]]*)\]", node.text)
        if found is None:
            raise _NotUnderstoodError(node.text)
        origins: Origins | None = frozenset() if node.name == "LocalRelation" else None
        return [_Attribute(token, number, origins) for token, number in _tokens(found[1])]

    def _no_columns(self, node: PlanNode) -> _Scope:
        return []

    def _computed(self, listed: str, below: _Scope, subqueries: Sequence[PlanNode]) -> _Scope:
        """Return the columns that ``listed`` (``a#1, upper(a#1) AS b#2``) makes out of ``below``."""
        known = _by_id(below)
        found: _Scope = []
        # The plans of subqueries are printed in the order in which the expressions show them.
        waiting = list(subqueries)
        if len(_SUBQUERY.findall(listed)) != len(waiting):
            raise _NotUnderstoodError(listed)
        for text, sure in _items(listed, below):
            end = _ITEM_END.search(text, text.rfind("#"))
            if end is None:
                raise _NotUnderstoodError(text)
            number = int(end[1])
            inner = [self.scope(waiting.pop(0)) for _ in _SUBQUERY.findall(text)]
            if number in known:
                found.append(known[number])
                continue
            expression, _, name = text.rpartition(" AS ")
            origins = None
            if sure and expression:
                looked_up = [attribute.origins for scope in inner for attribute in scope]
                origins = _united([_origins(expression, known), *looked_up])
            found.append(_Attribute(_without_suffix(name), number, origins))
        return found


def _only_child(node: PlanNode) -> PlanNode:
    if len(node.children) != 1:
        raise _NotUnderstoodError(node.text)
    return node.children[0]


def _inside(bracketed: str) -> str:
    if not (bracketed.startswith("[") and bracketed.endswith("]")):
        raise _NotUnderstoodError(bracketed)
    return bracketed[1:-1]


def _items(listed: str, below: _Scope) -> list[tuple[str, bool]]:
    """Split a list of expressions; the flag tells whether there is one way only to split it there.

    An expression may hold commas and brackets, also unpaired ones in literals. So it is split twice, by
    brackets and by the id that ends every column, and what both agree on is sure.
    """
    plain = {attribute.token for attribute in below}
    by_brackets = _split(listed, plain, brackets=True)
    by_ids = _split(listed, plain, brackets=False)
    if by_brackets is None and by_ids is None:
        raise _NotUnderstoodError(listed)
    if by_brackets is None or by_ids is None:
        return [(item, True) for item in by_brackets or by_ids or []]
    agreed = set(by_brackets) & set(by_ids)
    return [(item, item in agreed) for item in by_brackets]


def _split(listed: str, plain: set[str], *, brackets: bool) -> list[str] | None:
    items: list[str] = []
    start = 0
    for end in _ITEM_END.finditer(listed):
        item = listed[start : end.end()]
        if (_without_suffix(item) in plain or " AS " in item) and (not brackets or _balanced(item)):
            items.append(item)
            start = end.end() + 2
    return items if start >= len(listed) else None


def _balanced(text: str) -> bool:
    open_ones: list[str] = []
    for character in text:
        if character in "([{":
            open_ones.append({"(": ")", "[": "]", "{": "}"}[character])
        elif character in ")]}" and (not open_ones or open_ones.pop() != character):
            return False
    return not open_ones


def _tokens(listed: str) -> list[tuple[str, int]]:
    """Return the attributes of a plain list (``a#1, b#2L``) with their ids."""
    tokens: list[tuple[str, int]] = []
    start = 0
    for end in _ITEM_END.finditer(listed):
        tokens.append((_without_suffix(listed[start : end.end()]), int(end[1])))
        start = end.end() + 2
    if start < len(listed):
        raise _NotUnderstoodError(listed)
    return tokens


def _by_id(scope: _Scope) -> dict[int, _Attribute]:
    return {attribute.id: attribute for attribute in scope}


def _origins(expression: str, below: Mapping[int, _Attribute]) -> Origins | None:
    """Return where the attributes in ``expression`` come from; None when one of them is not known."""
    if "outer(" in expression:
        return None
    rest = expression
    united: Origins = frozenset()
    used = {int(number) for number in _ID.findall(expression)} & below.keys()
    # Long names first: a name may end with another's.
    for attribute in sorted((below[number] for number in used), key=lambda attribute: -len(attribute.token)):
        rest, uses = re.subn(rf"{re.escape(attribute.token)}L?(?![\w])", "", rest)
        if uses:
            if attribute.origins is None:
                return None
            united |= attribute.origins
    return None if re.search(r"#\d", _OTHER_IDS.sub("", rest)) else united


def _united(origins: Iterable[Origins | None]) -> Origins | None:
    united: Origins = frozenset()
    for some in origins:
        if some is None:
            return None
        united |= some
    return united


def _without_suffix(token: str) -> str:
    """Return ``name#12`` for ``name#12L``, as Spark prints a bigint."""
    return token.removesuffix("L") if re.search(r"#\d+L$", token) else token
