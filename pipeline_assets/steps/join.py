"""The join of two or more DataFrames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline_assets.errors import ConfigurationError, DataFrameResolutionError
from pipeline_assets.steps.base import StepContext, TransformMethod
from pipeline_assets.steps.column_types import are_comparable, lose_digits
from pipeline_assets.steps.columns import ColumnName, quote, require_columns
from pipeline_assets.steps.sql_texts import SqlExpression
from pipeline_assets.steps.transform import refuse_duplicates

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType

JoinType = Literal[
    "inner",
    "cross",
    "outer",
    "full",
    "fullouter",
    "full_outer",
    "left",
    "leftouter",
    "left_outer",
    "right",
    "rightouter",
    "right_outer",
    "semi",
    "leftsemi",
    "left_semi",
    "anti",
    "leftanti",
    "left_anti",
]
_SAME = {"fullouter": "outer", "full": "outer", "leftouter": "left", "rightouter": "right"}
_SAME |= {"semi": "leftsemi", "anti": "leftanti"}
Keys = tuple[ColumnName, ...] | tuple[tuple[ColumnName, ...], ...]


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class JoinDataFrames(TransformMethod):
    """Joins two or more DataFrames, from left to right.

    Columns of the result: those of the DataFrames in their order.

    - Keys of the same name on both sides appear once: with the left's value, the right's in a right join, whichever
      is not null in a full one. Keys of different names are both kept.
    - Any other column of the right DataFrame whose name is taken gets the DataFrame's name as a prefix: `id` of
      `orders` becomes `orders_id`. When that name is taken too, the step fails and names the columns; `rename` them.
    - Semi and anti joins keep the left columns alone.

    Names are compared without regard to case, as Spark compares them.

    Keys have the same type on both sides, or are numbers, or texts. DECIMALs whose digits no DECIMAL has all are
    refused: cast one of them before. A BIGINT or DECIMAL is compared with a DOUBLE or FLOAT as a DOUBLE, which has some
    15 digits, as in other databases.
    """

    method = "joinDataFrames"

    input_data_frames: tuple[str, ...] = Field(min_length=2)
    """The DataFrames to join, each once; to join one with itself, give it a second name by a step before."""
    join_type: Annotated[JoinType, BeforeValidator(_lower)] = "inner"
    """Spark's join type, for every join of the step."""
    keys: tuple[ColumnName, ...] = ()
    """Key columns that have the same names in all DataFrames."""
    left_keys: Keys = ()
    """Key columns of what stands left of a join. With more than two DataFrames: the same for each join, or a list of
    lists, one for each join, which may name any column of the result so far."""
    right_keys: Keys = ()
    """Key columns of the right DataFrame, as many as `leftKeys`. With more than two DataFrames: the same for each of
    them, or a list of lists."""
    condition: SqlExpression | tuple[SqlExpression, ...] | None = None
    """SQL condition instead of keys, with the DataFrames' names before the columns, e.g. `orders.day >=
    prices.valid_from`. With more than two DataFrames: a list, one for each join."""
    rename: dict[str, dict[ColumnName, ColumnName]] = {}
    """By DataFrame: new names of columns, given before the join. Keys and condition use the new names."""

    def input_names(self) -> tuple[str, ...] | None:
        return self.input_data_frames

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse_duplicates(self.input_data_frames)
        ways = {
            "keys": bool(self.keys),
            "leftKeys and rightKeys": bool(self.left_keys or self.right_keys),
            "condition": self.condition is not None,
        }
        given = [way for way, is_given in ways.items() if is_given]
        if self.join_type == "cross":
            if given:
                raise ValueError(f"a cross join takes no {given[0]}: use joinType 'inner' or leave them out")
        elif len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(
                f"a join of type {self.join_type!r} needs one of keys, leftKeys with rightKeys, condition (got {found})"
            )
        unknown = sorted(set(self.rename) - set(self.input_data_frames))
        if unknown:
            raise ValueError(
                f"'rename' names {', '.join(map(repr, unknown))}: expected one of 'inputDataFrames' "
                f"({', '.join(self.input_data_frames)})"
            )
        for name, renamed in self.rename.items():
            if len({new.casefold() for new in renamed.values()}) < len(renamed):
                raise ValueError(f"'rename' gives two columns of {name!r} the same new name")
        list(self._joins())
        return self

    def _joins(self) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...], str | None]]:
        """Yield right DataFrame, left keys, right keys and condition of each join."""
        others = self.input_data_frames[1:]
        lefts = _per_join("leftKeys", self.left_keys, others) if not self.keys else [self.keys] * len(others)
        rights = _per_join("rightKeys", self.right_keys, others) if not self.keys else [self.keys] * len(others)
        conditions: Sequence[str | None]
        if isinstance(self.condition, tuple) or self.condition is None:
            conditions = self.condition or [None] * len(others)
        else:
            conditions = [self.condition]
        if len(conditions) != len(others):
            raise ValueError(
                f"{len(others) + 1} DataFrames need {len(others)} conditions, a list with one for each join "
                f"(got {len(conditions)})"
            )
        for name, left, right, condition in zip(others, lefts, rights, conditions, strict=True):
            if len(left) != len(right):
                raise ValueError(
                    f"leftKeys and rightKeys must have the same length (got {len(left)} and {len(right)} for {name!r})"
                )
            yield name, left, right, condition

    def transform(self, inputs: Mapping[str, DataFrame], context: StepContext) -> DataFrame:
        join_type = _SAME.get(self.join_type.replace("_", ""), self.join_type.replace("_", ""))
        frames = {name: self._renamed(name, frame) for name, frame in inputs.items()}
        first = self.input_data_frames[0]
        left = _Side.of(first, frames[first])
        for name, left_keys, right_keys, condition in self._joins():
            left = left.join(_Side.of(name, frames[name]), join_type, left_keys, right_keys, condition)
        return left.frame.select(*(column.alias(name) for name, column, _ in left.columns.values()))

    def stream_state(self, inputs: tuple[bool, ...]) -> Any:
        return self.model_dump(mode="json", exclude_defaults=True) if sum(inputs) > 1 else None

    def _renamed(self, name: str, frame: DataFrame) -> DataFrame:
        renamed = self.rename.get(name, {})
        require_columns(renamed, name, frame)
        new = {old.casefold(): new for old, new in renamed.items()}
        columns = [new.get(column.casefold(), column) for column in frame.columns]
        seen: set[str] = set()
        for column in columns:
            if column.casefold() in seen:
                raise ConfigurationError(
                    f"DataFrame {name!r} has column {column!r} twice"
                    + (" after 'rename'" if renamed else "")
                    + ": give one of them another name"
                )
            seen.add(column.casefold())
        # withColumnsRenamed takes one name after the other: where two are exchanged, both columns would get one.
        return frame.toDF(*columns) if renamed else frame


@dataclass(frozen=True)
class _Side:
    """One side of a join: a plan in which every DataFrame is still known by its name, and the columns it yields.

    Names are given to the columns once, after the last join: nothing stands between the joins, so that Spark sees the
    plan that it would see in a join written by hand. ``columns``: by folded name (name, column, type).
    """

    name: str
    frame: DataFrame
    columns: Mapping[str, tuple[str, Column, DataType]]

    @classmethod
    def of(cls, name: str, frame: DataFrame) -> _Side:
        from pyspark.sql import functions as F  # noqa: N812

        columns = {
            field.name.casefold(): (field.name, F.col(f"{quote(name)}.{quote(field.name)}"), field.dataType)
            for field in frame.schema.fields
        }
        return cls(name, frame.alias(name), columns)

    def join(
        self, right: _Side, join_type: str, left_keys: Sequence[str], right_keys: Sequence[str], condition: str | None
    ) -> _Side:
        from pyspark.sql import functions as F  # noqa: N812

        if join_type == "cross":
            return self._with(right, self.frame.crossJoin(right.frame), join_type, set())
        shared = {
            left.casefold()
            for left, key in zip(left_keys, right_keys, strict=True)
            if left.casefold() == key.casefold()
        }
        if condition is not None:
            on = F.expr(condition)
        else:
            self._require(left_keys)
            right._require(right_keys)
            on = F.expr("true")
            for position, (left, key) in enumerate(zip(left_keys, right_keys, strict=True)):
                _check_types(self, left, right, key)
                equal = self.columns[left.casefold()][1] == right.columns[key.casefold()][1]
                on = on & equal if position else equal
        return self._with(right, self.frame.join(right.frame, on, join_type), join_type, shared)

    def _with(self, right: _Side, joined: DataFrame, join_type: str, shared: set[str]) -> _Side:
        from pyspark.sql import functions as F  # noqa: N812

        name = f"{self.name} and {right.name}"
        if join_type in ("leftsemi", "leftanti"):
            return _Side(self.name, joined, self.columns)
        columns = dict(self.columns)
        for key in shared:
            shown, left, type_ = self.columns[key]
            other = right.columns[key][1]
            if join_type == "right":
                columns[key] = (shown, other, right.columns[key][2])
            elif join_type == "outer":
                columns[key] = (shown, F.coalesce(left, other), type_)
        added = {key: column for key, column in right.columns.items() if key not in shared}
        clashes: list[str] = []
        for key, (column, value, type_) in added.items():
            shown = column
            if key in columns:
                shown = f"{right.name}_{column}"
                if shown.casefold() in columns or shown.casefold() in added:
                    clashes.append(f"{column!r} (and {shown!r})")
            columns[shown.casefold()] = (shown, value, type_)
        if clashes:
            raise ConfigurationError(
                f"columns of {right.name!r} clash with those of {self.name!r}: {', '.join(clashes)} are taken; "
                f'give them other names, e.g. "rename": {{"{right.name}": {{"<column>": "<new name>"}}}}'
            )
        return _Side(name, joined, columns)

    def _require(self, keys: Sequence[str]) -> None:
        missing = [key for key in keys if key.casefold() not in self.columns]
        if missing:
            shown = [column for column, _, _ in self.columns.values()]
            raise DataFrameResolutionError.unknown_columns(missing, self.name, shown)


def _check_types(left: _Side, left_key: str, right: _Side, right_key: str) -> None:
    left_name, _, left_type = left.columns[left_key.casefold()]
    right_name, _, right_type = right.columns[right_key.casefold()]
    check_comparable((left_name, left.name, left_type), (right_name, right.name, right_type))


def check_comparable(left: tuple[str, str, DataType], right: tuple[str, str, DataType]) -> None:
    """Refuse keys whose types Spark would convert behind one's back, or fail on at run time.

    Each is a column, the DataFrame that it is in, and its type. Raises ConfigurationError.
    """
    (left_name, left_frame, left_type), (right_name, right_frame, right_type) = left, right
    if are_comparable(left_type, right_type):
        return
    wanted = left_type.simpleString()
    found = (
        f"join keys have different types: {left_name!r} of {left_frame!r} is {wanted}, "
        f"{right_name!r} of {right_frame!r} is {right_type.simpleString()}"
    )
    if lose_digits(left_type, right_type):
        raise ConfigurationError(
            f"{found}, and no DECIMAL has the digits of both: Spark would round values before it compares them; cast "
            "one of them in a step before, to no more digits than its values have"
        )
    raise ConfigurationError(
        f"{found}; cast one of them in a step before, "
        f'e.g. withColumns {{"columns": {{"{right_name}": "CAST({right_name} AS {wanted})"}}}} on {right_frame!r}'
    )


def _per_join(name: str, keys: Keys, others: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the keys of each join: one flat list holds for all of them."""
    nested = [key for key in keys if isinstance(key, tuple)]
    if nested:
        if len(nested) != len(others):
            raise ValueError(
                f"{name} holds {len(nested)} lists: expected {len(others)}, one for each DataFrame after the first"
            )
        return nested
    return [tuple(key for key in keys if isinstance(key, str))] * len(others)
