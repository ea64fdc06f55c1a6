"""Extracts from files, on S3 or on a file system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.steps.base import Dataset, ExtractMethod, StepContext
from pipeline_assets.steps.path_checks import check_any, check_s3
from pipeline_assets.steps.paths import (
    FileFormat,
    OptionValue,
    check_options,
    files_dataset,
    format_of,
    open_for_spark,
    option_texts_with,
    unknown_format,
)
from pipeline_assets.steps.s3_paths import is_s3
from pipeline_assets.steps.sql_texts import SqlColumns, no_columns
from pipeline_assets.uris import without_login

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class FilesExtract(ExtractMethod):
    """What extracts from files have in common."""

    behavior_version = "3"

    format: FileFormat | None = None
    """Format of the files; told from the path's extension when left out (a compression's, as in `.json.gz`, may
    follow it)."""
    schema_: SqlColumns | None = Field(default=None, alias="schema")
    """Columns as Spark DDL, e.g. `id BIGINT, day DATE`. Left out, Spark takes it from the files, which for JSON and
    CSV means reading them once. The header of each CSV file has to name these columns in this order, and where they are
    given, a record of CSV or JSON that does not fit them fails the run. Names of folders such as `code=007/` are
    columns, too: of one that is not named here, Spark tells the type from the values, so `007` becomes the number 7."""
    options: Annotated[dict[str, OptionValue], AfterValidator(check_options)] = {}
    """Options of Spark's reader for the format, e.g. `multiLine` or `pathGlobFilter`. CSV files are read with `header`,
    with a double quote as `escape` (so that a quote in a value stands there twice) and, when there is no schema,
    `inferSchema`, unless these say otherwise. Where a backslash goes before such a quote, as Spark itself writes it,
    `escape` has to be a backslash. Values of CSV that hold line breaks need `multiLine` (true); each file is then read
    by one task. `enforceSchema` (true) takes the columns of CSV by their position, whatever the header says, and, with
    a schema, `mode` (`PERMISSIVE`) gives nulls for what does not fit. Of Parquet and ORC files whose columns differ,
    Spark takes those of one file and leaves the others' out, unless `{"options": {"mergeSchema": true}}` has it look
    into all of them, or a schema names them."""

    if TYPE_CHECKING:
        # Each has them as fields of its own: which paths it takes, and how they are explained, is not the same.
        path: str | None
        paths: tuple[str, ...]

    @model_validator(mode="before")
    @classmethod
    def _path_or_paths(cls, data: Any) -> Any:
        # Before the fields, so that a missing path is one message and not one about its format, too.
        if isinstance(data, dict) and bool(data.get("path")) == bool(data.get("paths")):
            raise ValueError("give exactly one of 'path' and 'paths'")
        return data

    def all_paths(self) -> tuple[str, ...]:
        """Return every path that is read."""
        return (self.path,) if self.path else self.paths

    def file_format(self) -> FileFormat:
        """Return the format: the one given, or the one that the extensions stand for."""
        if self.format is not None:
            return self.format
        found = {path: format_of(path) for path in self.all_paths()}
        for path, format_ in found.items():
            if format_ is None:
                raise ValueError(unknown_format(path))
        formats = set(found.values())
        if len(formats) > 1:
            raise ValueError(
                f"the paths have different formats ({', '.join(sorted(map(str, formats)))}): "
                "read them in separate steps and unite them, or give 'format'"
            )
        (only,) = formats
        assert only is not None  # noqa: S101  (for the type checker: None has been refused above)
        return only

    @model_validator(mode="after")
    def _format_is_known(self) -> Self:
        self.file_format()
        return self

    def sources(self) -> tuple[Dataset, ...]:
        return tuple(dict.fromkeys(files_dataset(path) for path in self.all_paths()))

    def _read(self, context: StepContext, connection: str) -> DataFrame:
        from pyspark.errors import AnalysisException

        paths = open_for_spark(self.all_paths(), connection, context)
        format_ = self.file_format()
        reader = context.spark.read.format(format_).options(**self._reader_options(format_))
        try:
            if self.schema_ is not None:
                reader = reader.schema(self.schema_)
            frame = reader.load(list(paths))
            columns = frame.columns  # Connect looks for the files only now
            if format_ == "csv" and self.schema_ is None and not _named_by_spark(columns):
                # Of files whose headers differ, Spark would take the columns by their position.
                reader = context.spark.read.format(format_).options(**self._reader_options(format_, inferred=True))
                frame = reader.schema(frame.schema).load(list(paths))
            # Where Spark did not need a file to know the columns, there may be none.
            known_before = self.schema_ is not None or format_ == "text"
            empty = not columns or (known_before and not frame.inputFiles())
        except AnalysisException as error:
            raise self._explain(error, paths, format_) from None
        if empty:
            raise _no_files(paths, format_)
        return frame

    def _reader_options(self, format_: FileFormat, *, inferred: bool = False) -> dict[str, str]:
        """Return the options of Spark's reader; ``inferred``: it is given the schema that it has found before."""
        defaults: dict[str, OptionValue] = {}
        if format_ == "csv":
            defaults["header"] = True
            # Spark's own is a backslash, which other programs that write CSV do not mean.
            defaults["escape"] = '"'
            if self.schema_ is None and not inferred:
                defaults["inferSchema"] = True
            else:
                # Otherwise columns are taken by their position, whatever the header calls them.
                defaults["enforceSchema"] = False
        if format_ in ("csv", "json") and self.schema_ is not None and not self._keeps_broken_records():
            # Otherwise there are nulls for what can't be read.
            defaults["mode"] = "FAILFAST"
        return option_texts_with(defaults, self.options)

    def _keeps_broken_records(self) -> bool:
        """Whether Spark is to put records that it can't read into a column of their own."""
        options = {name.casefold() for name in self.options}
        return "columnnameofcorruptrecord" in options or "_corrupt_record" in (self.schema_ or "").casefold()

    def _explain(self, error: Any, paths: tuple[str, ...], format_: FileFormat) -> ConfigurationError:
        from pyspark.errors import ParseException

        if self.schema_ is not None and isinstance(error, ParseException):
            return no_columns(self.schema_, error)
        match error.getCondition():
            case "PATH_NOT_FOUND":
                missing = (error.getMessageParameters() or {}).get("path") or ", ".join(paths)
                return ConfigurationError(f"path {missing} does not exist, or no file matches it")
            case "UNABLE_TO_INFER_SCHEMA":
                return _no_files(paths, format_)
            case _:
                if error.getMessageParameters() == {"provider": "avro"}:
                    return ConfigurationError("this Spark cannot read avro: org.apache.spark:spark-avro is missing")
                raise error


def _named_by_spark(columns: Sequence[str]) -> bool:
    """Whether Spark may have found a name itself, with the column's place in it: of an empty or a repeated header."""
    ends = [(name.casefold(), str(place)) for place, name in enumerate(columns)]
    stems = [name.removesuffix(place) for name, place in ends if name.endswith(place)]
    return "_c" in stems or len(set(stems)) < len(stems)


def _no_files(paths: tuple[str, ...], format_: FileFormat) -> ConfigurationError:
    return ConfigurationError(
        f"{', '.join(paths)} holds no {format_} files with any data: is the folder empty, or the format another?"
    )


class FromS3(FilesExtract):
    """Reads files from S3: parquet, json, csv, orc, text or avro."""

    method = "fromS3"
    kinds = frozenset({"spark", "s3"})

    path: Annotated[str, AfterValidator(check_s3)] | None = None
    """A file, a folder or a glob, e.g. `s3a://data/orders/*.parquet`. `s3://` and `s3n://` are taken for `s3a://`."""
    paths: tuple[Annotated[str, AfterValidator(check_s3)], ...] = ()
    """Several such paths, to be read together."""
    connection: str = "default"
    """S3 connection (from connections.json)."""

    def extract(self, context: StepContext) -> DataFrame:
        return self._read(context, self.connection)


def _check_not_s3(path: str) -> str:
    if is_s3(without_login(path)):
        raise ValueError(f"{path!r} is on S3: use the method 'fromS3'")
    return check_any(path)


class FromFile(FilesExtract):
    """Reads files from a file system that Spark's workers see: parquet, json, csv, orc, text or avro."""

    method = "fromFile"

    path: Annotated[str, AfterValidator(_check_not_s3)] | None = None
    """A file, a folder or a glob, e.g. `/data/orders/*.parquet`."""
    paths: tuple[Annotated[str, AfterValidator(_check_not_s3)], ...] = ()
    """Several such paths, to be read together."""

    def extract(self, context: StepContext) -> DataFrame:
        return self._read(context, "default")
