"""The SQL in configs, checked by Spark's own parser: no source is opened, no query is analysed or run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pipeline_assets.errors import ConfigIssue, PipelineError
from pipeline_assets.json_documents import pointer
from pipeline_assets.pipeline_documents import Pipeline
from pipeline_assets.spark.failures import spark_errors
from pipeline_assets.steps.sql_texts import SqlText, sql_texts

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# What can be a column's name where an expression may stand too; the parser has no say in names.
_NAME = re.compile(r"[\w .\-/#:@%&]+")


def sql_issues(pipelines: Iterable[Pipeline], spark: SparkSession) -> Iterator[ConfigIssue]:
    """Yield an issue for every SQL text of ``pipelines`` that does not parse, with line and position in the text.

    ``spark``: a classic session. A partitioned pipeline is checked with the key of its first partition.
    """
    parser = spark._jsparkSession.sessionState().sqlParser()
    for pipeline in pipelines:
        partitions = pipeline.config.partitions
        checked = pipeline.for_partition(partitions.first_key()) if partitions else pipeline
        for index, method in enumerate(checked.methods):
            for place, text, mark in sql_texts(method):
                problem = _problem(text, mark, parser)
                if problem is not None:
                    yield ConfigIssue(pipeline.file, pointer("steps", index, "config", *place), problem)


def _problem(text: str, mark: SqlText, parser: Any) -> str | None:
    if mark.kind == "column" and _NAME.fullmatch(text):
        return None
    parsers = {"query": parser.parsePlan, "columns": parser.parseTableSchema, "type": parser.parseDataType}
    parse = parsers.get(mark.kind, parser.parseExpression)
    try:
        with spark_errors():
            parse(text)
    except PipelineError as error:
        return error.message
    return None
