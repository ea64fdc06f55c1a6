"""Spark's exceptions, classic and Connect, told as this package's errors."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline_assets.errors import (
    ConfigurationError,
    DataFrameResolutionError,
    OriginalError,
    PipelineError,
    PipelineExecutionError,
    did_you_mean,
    first_line,
)
from pipeline_assets.redaction import redact
from pipeline_assets.transience import (
    LOST_SESSION,
    Transience,
    execution_error,
    of_grpc_status,
    of_java,
    seconds_of,
    transience_of,
)

if TYPE_CHECKING:
    from pyspark.errors import PySparkException

_DETAILS_LIMIT = 4000
_TRACE_LIMIT = 20_000
_CHAIN_LIMIT = 20

# Exceptions of other Java libraries, the most telling first, and what is to be said before their words.
_TELLING = {
    "SQLException": "the database says",
    "UnknownStoreException": "there is no such bucket",
    "NoAuthWithAWSException": "there are no AWS credentials",
    "AccessDeniedException": "access denied",
    "AWSBadRequestException": "S3 refused the request",
    "AWSClientIOException": "S3 cannot be reached",
    "FileNotFoundException": "there is no such file",
    "AuthorizationException": "Kafka does not let the connection's user do this (fromKafka needs READ, toKafka WRITE)",
    "AuthenticationException": "Kafka refused the login",
    "KafkaException": "Kafka failed",
    "UnknownHostException": "there is no such host",
    "SocketTimeoutException": "no answer in time",
    "ConnectException": "nobody answers",
}

# Of Spark's CSVHeaderChecker, which has no conditions.
_OTHER_HEADER = re.compile(
    r"CSV header does not conform to the schema\.\n Header: (?P<names>.*)\n Schema: (?P<fields>.*)\n"
    r"|Number of column in CSV header is not equal to number of fields in the schema:\n"
    r" Header length: (?P<size>\d+), schema size: (?P<wanted>\d+)"
)


@dataclass(frozen=True)
class Cause:
    """One exception of a chain; ``condition`` and ``parameters`` are Spark's, ``sql_state`` also a database's.

    ``status`` is that of the HTTP answer behind it, ``retry_after`` the seconds that the answer asked to wait.
    """

    java_class: str
    message: str
    kinds: tuple[str, ...] = ()
    condition: str | None = None
    sql_state: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    status: int | None = None
    retry_after: float | None = None

    @property
    def first_line(self) -> str:
        """What it says, without the condition and the SQLSTATE that Spark writes around it."""
        text = re.sub(r"^\[[A-Z0-9_.]+\] ", "", first_line(self.message))
        text = re.sub(r"\s*SQLSTATE: \w{5}\b.*$", "", text).rstrip(" ;")
        # Java libraries put the name and the text of a cause behind their own.
        return re.sub(r"(?:[a-z]\w*\.){2,}([A-Z]\w*)", r"\1", text) or self.java_class.rpartition(".")[2]


def is_spark_error(error: BaseException) -> bool:
    """Whether ``error`` was raised by PySpark, Py4J or Spark Connect's client."""
    return _is_of_spark(_behind(error))


def _is_of_spark(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in ("pyspark", "py4j", "grpc") or any(
        base.__module__.startswith("pyspark.errors") for base in type(error).__mro__
    )


def _behind(error: BaseException) -> BaseException:
    """Return ``error``, or Py4J's own where PySpark's clean-up ran into a JVM that is gone and says that alone."""
    inner = error.__context__
    return inner if isinstance(error, ConnectionError) and inner is not None and _is_of_spark(inner) else error


@contextmanager
def spark_errors() -> Iterator[None]:
    """Turn Spark's exceptions inside the block into ``spark_failure``; all others pass through unchanged."""
    try:
        yield
    except Exception as error:
        if not is_spark_error(error):
            raise
        # Not chained: the original's text may show a secret, and its JVM trace buries the message.
        raise spark_failure(error) from None


@contextmanager
def explained_by(explain: Callable[[Cause], PipelineError | None]) -> Iterator[None]:
    """Raise what ``explain`` has for one of the causes of Spark's exceptions inside the block, the outermost first."""
    try:
        yield
    except Exception as error:
        causes = causes_of(error) if is_spark_error(error) else []
        explained = next((told for cause in causes if (told := explain(cause))), None)
        if explained is None:
            raise
        raise explained from None


def spark_failure(error: BaseException, *, columns: Sequence[str] = ()) -> PipelineError:
    """Return what ``error`` (a Spark exception) means for the person who wrote the pipeline.

    ``columns``: those of what the step worked on, to suggest from. A wrong name, path, type or syntax becomes a
    ConfigurationError (DataFrameResolutionError for columns and tables), all else a PipelineExecutionError, or a
    RetryableError where the same may go well later. The message is one line; causes and plans follow in the details,
    without JVM traces. Secrets are masked.
    """
    error = _behind(error)
    causes = causes_of(error)
    transience = spark_transience(error, causes)
    # A streaming query wraps what ended it, and its own text is the whole plan.
    causes = [cause for cause in causes if cause.condition != "STREAM_FAILED"] or causes
    failure = (
        next((told for cause in causes if (told := _known_condition(cause, columns))), None)
        or _told_of_a_file(causes)
        or _told_elsewhere(causes, transience)
        or _plain_failure(causes, transience)
    )
    failure.message = redact(failure.message)
    failure.args = (failure.message,)
    failure.details = redact("\n".join(_details(causes)))[:_DETAILS_LIMIT]
    return failure


def original_error(error: BaseException) -> OriginalError:
    """Return the class, message and trace of ``error``: the JVM's where it comes from there, Python's otherwise."""
    if not is_spark_error(error):
        text = "".join(traceback.format_exception(error))
    else:
        # Classic Spark keeps it in an attribute, Spark Connect asks the server, and Py4J has it in the text.
        trace = getattr(error, "_stackTrace", None) or getattr(error, "getStackTrace", lambda: None)() or ""
        message = str(error)
        text = f"{type(error).__name__}: {message}" + ("" if trace in message else f"\n{trace}")
    return OriginalError(redact(text)[:_TRACE_LIMIT])


def spark_transience(error: BaseException, causes: Sequence[Cause]) -> Transience | None:
    """Return whether ``error``, whose chain is ``causes``, passes by itself; None when it is permanent."""
    found = of_java(causes)
    if found is not None or len(causes) > 1:
        return found
    status = getattr(error, "getGrpcStatusCode", None) or getattr(error, "code", None)
    # A server that failed a query says INTERNAL; what else there is comes from the way to it.
    kind = of_grpc_status(status().name) if callable(status) else None
    return Transience(kind) if kind is not None else transience_of(error)


def _known_condition(cause: Cause, columns: Sequence[str]) -> PipelineError | None:
    """Return what a Spark error condition means, where a config's author can do something about it."""
    condition = (cause.condition or "").partition(".")[0]
    given = cause.parameters
    if condition in ("UNRESOLVED_COLUMN", "UNRESOLVED_FIELD", "UNRESOLVED_USING_COLUMN_FOR_JOIN"):
        name = _last_name(given.get("objectName") or given.get("fieldName") or given.get("colName") or "")
        there = list(columns) or _names(given.get("proposal") or given.get("suggestion") or "")
        listed = f" (columns: {', '.join(there)})" if there else ""
        return DataFrameResolutionError(f"there is no column {name!r}{did_you_mean(name, there)}{listed}")
    if condition == "AMBIGUOUS_REFERENCE":
        choices = given.get("referenceNames", "").replace("`", "").strip("[]")
        return DataFrameResolutionError(
            f"column {_last_name(given.get('name', ''))!r} is ambiguous: it could be any of {choices}"
        )
    if condition == "TABLE_OR_VIEW_NOT_FOUND":
        name = given.get("relationName", "").replace("`", "")
        return DataFrameResolutionError(f"there is no DataFrame or table {name!r}")
    if condition == "PATH_NOT_FOUND":
        return ConfigurationError(f"there is nothing at {given.get('path', '')}: the path does not exist")
    if condition == "UNABLE_TO_INFER_SCHEMA":
        kind = given.get("format", "")
        return ConfigurationError(f"there are no {kind} files to read, so the columns are not known")
    if condition in ("DELTA_SOURCE_TABLE_IGNORE_CHANGES", "DELTA_SOURCE_IGNORE_DELETE"):
        return ConfigurationError(
            f"version {given.get('version')} of the Delta table at {given.get('dataPath')} changes or removes rows, "
            "and a stream reads only what is added: set 'skipChangeCommits' in the fromDeltaLake step to leave out "
            "such versions, or give a new 'checkpointLocation' and empty the target to read the table anew"
        )
    if condition.startswith("PARSE_"):
        position = re.search(r"\(line (\d+), pos (\d+)\)", cause.message)
        where = f" (line {position[1]}, position {int(position[2]) + 1})" if position else ""
        return ConfigurationError(f"SQL: {cause.first_line.rstrip('.')}{where}")
    if condition == "JAVA_GATEWAY_EXITED":
        return ConfigurationError(
            "Java did not start: Spark needs a JDK or JRE 17 or 21 on the PATH or in JAVA_HOME, "
            "and enough memory for it"
        )
    return None


def _told_of_a_file(causes: Sequence[Cause]) -> PipelineError | None:
    """Return which file has other columns or values than the `schema` of the step that reads it, and what to do."""
    file = next((cause.first_line for cause in causes if (cause.condition or "").startswith("FAILED_READ_FILE")), None)
    if file is None:
        return None
    name = file.removeprefix("Encountered error while reading file ").rstrip(".")
    for cause in causes:
        if header := _OTHER_HEADER.match(cause.message):
            there, said = (
                (header["names"], header["fields"])
                if header["fields"]
                else (f"{header['size']} columns", header["wanted"])
            )
            return ConfigurationError(
                f"{name}: the header has {there or 'nothing'} where 'schema' (if there is none, the first file) has "
                f"{said}: name the file's columns in 'schema', in their order, or take them by position with "
                "'options': {\"enforceSchema\": true}; read files with other columns in a step of their own"
            )
        if (cause.condition or "").startswith("MALFORMED_RECORD_IN_PARSING"):
            return PipelineExecutionError(
                f"{name}: a record does not fit 'schema' ({_why_malformed(causes[-1])}): correct one of them, or have "
                'nulls for what does not fit with \'options\': {"mode": "PERMISSIVE"}'
            )
    return None


def _why_malformed(cause: Cause) -> str:
    # Spark quotes the whole row there.
    return "more or fewer values than columns" if cause.condition == "MALFORMED_CSV_RECORD" else cause.first_line


def _told_elsewhere(causes: Sequence[Cause], transience: Transience | None) -> PipelineError | None:
    """Return what a database, a file system or a broker said, mostly in its own words."""
    if any(cause.condition in LOST_SESSION for cause in causes):
        return execution_error(
            "the Spark Connect server has been started anew: the session, with all that was in it, is gone", transience
        )
    for kind, words in _TELLING.items():
        for cause in causes:
            # A BatchUpdateException quotes the rows; the cause behind it says what is wrong with them.
            if kind in cause.kinds and "BatchUpdateException" not in cause.kinds:
                state = f" (SQLSTATE {cause.sql_state})" if kind == "SQLException" and cause.sql_state else ""
                return execution_error(f"{words}: {cause.first_line}{state}", transience)
    return None


def _plain_failure(causes: Sequence[Cause], transience: Transience | None) -> PipelineError:
    """Return Spark's own words: those with an error condition, else the innermost that there are."""
    with_condition = [cause for cause in causes if cause.condition]
    for cause in [*with_condition, *causes]:
        in_python = "PythonException" in cause.kinds or "raised by the Python Proxy" in cause.message
        if cause.condition == "PYTHON_EXCEPTION" or in_python:
            lines = [line.strip() for line in re.sub(r"\s+SQLSTATE: \w{5}", "", cause.message).splitlines()]
            last = next((line for line in reversed(lines) if line), "")
            return PipelineExecutionError(f"a Python function in the query failed: {last}")
    if with_condition:
        words = dict.fromkeys(cause.first_line.rstrip(".") for cause in with_condition[:2])
        # By the SQL standard, 42 is wrong syntax, names and types; 46110 is Spark's for a conf it cannot set.
        in_config = any(
            (cause.sql_state or "")[:2] in ("42", "46") or cause.java_class.endswith("AnalysisException")
            for cause in with_condition
        )
        said = ": ".join(words)
        return ConfigurationError(said) if in_config and not transience else execution_error(said, transience)
    innermost = next((cause for cause in reversed(causes) if cause.message), causes[-1])
    return execution_error(innermost.first_line, transience)


def _details(causes: Iterable[Cause]) -> Iterator[str]:
    for number, cause in enumerate(causes):
        known = ", ".join(filter(None, (cause.condition, f"SQLSTATE {cause.sql_state}" if cause.sql_state else None)))
        title = f"{cause.java_class} [{known}]" if known else cause.java_class
        text = re.sub(r"\n(?:\s+at |Caused by: |\s+\.\.\. \d+ more)[^\n]*", "", cause.message).strip()
        yield f"{'caused by ' if number else ''}{title}: {text}"


def causes_of(error: BaseException) -> list[Cause]:
    """Return the chain of ``error`` (a Spark exception), outermost first: the JVM's exceptions where there are any.

    Which of them is the outermost is a matter of chance: a failed task is reported as itself or inside the
    job's failure, as Spark's scheduler has it.
    """
    from py4j.protocol import Py4JError, Py4JJavaError
    from pyspark.errors import PySparkException

    if isinstance(error, Py4JJavaError):
        return _java_chain(error.java_exception)
    if isinstance(error, Py4JError):
        # Py4J raises no more than its base class when a call gets no answer; what Java says comes with a trace.
        name = type(error).__name__ if "Trace:" in str(error) else "Py4JNetworkError"
        return [Cause(name, f"Spark's JVM is gone or does not answer: {error}".strip(": "), (name,))]
    if not isinstance(error, PySparkException):
        return [Cause(type(error).__name__, str(error))]
    origin = getattr(error, "_origin", None)
    if origin is not None:
        return _java_chain(origin)
    return _connect_chain(error)


def _java_chain(exception: Any) -> list[Cause]:
    """Read a Java exception and its causes through Py4J."""
    from py4j.java_gateway import is_instance_of
    from py4j.protocol import Py4JError
    from pyspark.core.context import SparkContext

    chain: list[Cause] = []
    try:
        while exception is not None and len(chain) < _CHAIN_LIMIT:
            kinds = _java_kinds(exception)
            condition, state, parameters = None, None, {}
            jvm: Any = SparkContext._jvm
            if is_instance_of(SparkContext._gateway, exception, "org.apache.spark.SparkThrowable"):
                condition = jvm.PythonErrorUtils.getCondition(exception)
                state = jvm.PythonErrorUtils.getSqlState(exception)
                parameters = dict(jvm.PythonErrorUtils.getMessageParameters(exception))
            elif "SQLException" in kinds:
                state = exception.getSQLState()
            status, retry_after = _java_answer(exception) if "AwsServiceException" in kinds else (None, None)
            name = exception.getClass().getName()
            message = exception.getMessage() or ""
            chain.append(Cause(name, message, kinds, condition, state, parameters, status, retry_after))
            exception = exception.getCause()
    except (Py4JError, OSError):
        # The JVM died while it was asked.
        chain.append(Cause("Py4JNetworkError", "Spark's JVM is gone"))
    return chain


def _java_answer(exception: Any) -> tuple[int | None, float | None]:
    """Return the HTTP status that an exception of the AWS SDK tells, and the seconds that it asks to wait."""
    status = int(exception.statusCode())
    details = exception.awsErrorDetails()
    answer = details.sdkHttpResponse() if details is not None else None
    header = answer.firstMatchingHeader("Retry-After").orElse(None) if answer is not None else None
    return status or None, seconds_of(header, time.time())


def _java_kinds(exception: Any) -> tuple[str, ...]:
    """Return the simple names of the exception's class and of those that it derives from."""
    kinds = []
    java_class = exception.getClass()
    while java_class is not None:
        kinds.append(java_class.getSimpleName())
        java_class = java_class.getSuperclass()
    return tuple(kinds)


def _connect_chain(error: PySparkException) -> list[Cause]:
    """Read what the server sent: the outermost exception, and its causes from the text of the trace."""
    trace = getattr(error, "getStackTrace", lambda: None)() or ""
    message = str(getattr(error, "_message", None) or error).partition("\n\nJVM stacktrace:")[0]
    # Unmapped exceptions carry their class in front of the text.
    named = re.match(r"\((?P<name>[\w.$]+)\) ", message)
    outermost = named["name"] if named else trace.partition("\n")[0].strip() or type(error).__name__
    chain = [
        Cause(
            outermost,
            message[named.end() :] if named else message,
            _kinds_by_name(outermost),
            error.getCondition(),
            error.getSqlState() if error.getCondition() else None,
            error.getMessageParameters() or {},
            _status_in(outermost, message),
        )
    ]
    # Over Connect a cause's condition is only in front of its text.
    for name, text in re.findall(r"^Caused by: ([\w.$]+): ((?:(?!\tat |Caused by: ).*\n?)*)", trace, re.MULTILINE):
        condition = re.match(r"\[([A-Z0-9_.]+)\] ", text)
        state = re.search(r"SQLSTATE: (\w{5})\b", text)
        chain.append(
            Cause(
                name,
                text.strip(),
                _kinds_by_name(name),
                condition[1] if condition else None,
                state[1] if state else None,
                status=_status_in(name, text),
            )
        )
    return chain[:_CHAIN_LIMIT]


def _status_in(java_class: str, text: str) -> int | None:
    """Return the HTTP status in the text of an exception of the AWS SDK."""
    if not java_class.startswith("software.amazon.awssdk."):
        return None
    found = re.search(r"\bStatus Code: (\d{3})\b", text)
    return int(found[1]) if found else None


def _kinds_by_name(java_class: str) -> tuple[str, ...]:
    """Return what ``_java_kinds`` would, as far as a class's name tells."""
    simple = java_class.rpartition(".")[2]
    kinds = [simple]
    if java_class.startswith(("java.sql.", "org.postgresql.")):
        kinds.append("SQLException")
    if java_class.startswith("org.apache.kafka.common."):
        bases = ("AuthorizationException", "AuthenticationException")
        kinds += [*(base for base in bases if simple.endswith(base)), "KafkaException"]
    if re.fullmatch(r"io\.delta\.exceptions\.(Concurrent\w+|(Metadata|Protocol)Changed)Exception", java_class):
        kinds.append("DeltaConcurrentModificationException")
    return tuple(kinds)


def _last_name(quoted: str) -> str:
    names = _names(quoted.replace("`.`", "`, `"))
    return names[-1] if names else quoted


def _names(quoted: str) -> list[str]:
    """Return the names in Spark's list of them: `` `a`, `b c` ``."""
    return [name.replace("``", "`") for name in re.findall(r"`((?:[^`]|``)*)`", quoted)]
