"""Pipelines out of parsed JSON, with every error named at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from pydantic import ValidationError

from pipeline_assets.config import PIPELINE_NAME, PipelineConfig, Retry, StepEnvelope
from pipeline_assets.errors import ConfigIssue, ConfigurationError, did_you_mean
from pipeline_assets.json_documents import pointer
from pipeline_assets.model_issues import as_written, issues_of
from pipeline_assets.redaction import redact
from pipeline_assets.steps import method_registry
from pipeline_assets.steps.base import StepMethod
from pipeline_assets.variables import substitute, unescape

MethodRegistry = Mapping[tuple[str, str], type[StepMethod]]
# What is the run's own to say, and never the environment's, nor a default's.
RUN_VARIABLES = ("partition",)


@dataclass(frozen=True)
class Pipeline:
    """A config that has been checked: ``methods`` are its steps' methods, in order.

    ``document`` is the parsed JSON with the environment substituted and ``${partition}`` still in it. The methods of
    ``unreadable`` steps are stand-ins: there are some in the pipeline of an InvalidPipelineError alone.
    """

    file: str
    config: PipelineConfig
    methods: tuple[StepMethod, ...]
    document: Mapping[str, Any]
    unreadable: frozenset[int] = frozenset()

    @property
    def is_streaming(self) -> bool:
        """Whether its runs are streams."""
        return self.config.mode == "streaming"

    def retry_of(self, index: int) -> Retry | None:
        """Return when step ``index`` is tried again: its own settings, or else the pipeline's; None for never."""
        return self.config.steps[index].retry or self.config.retry

    def for_partition(self, key: str) -> Pipeline:
        """Return the pipeline with ``key`` in place of ``${partition}``."""
        document = substitute(dict(self.document), {"partition": key}, lambda name, at: None)
        found = read_pipeline(self.file, document, method_registry(), document)
        return replace(without_issues(*found, document), document=self.document)

    def keys_with_partition(self, index: int) -> frozenset[str]:
        """Return the keys in the config of step ``index`` that name ``${partition}``."""
        found: set[str] = set()

        def note(name: str, at: str) -> None:
            if name == "partition":
                found.add(at.split("/")[1])

        substitute(self.document["steps"][index].get("config", {}), {}, note, RUN_VARIABLES)
        return frozenset(found)

    def text_for_partition(self, index: int, key: str, partition: str) -> str:
        """Return the text at ``key`` in the config of step ``index``, as a run for ``partition`` has it."""
        text = self.document["steps"][index]["config"][key]
        return str(unescape(substitute(text, {"partition": partition}, lambda name, at: None)))


class InvalidPipelineError(ConfigurationError):
    """What is wrong with a file. ``readable`` is the pipeline as far as it could be read; None for too little.
    ``name`` is what it says that it is called, where that is a name.
    """

    readable: Pipeline | None = None
    name: str | None = None


def without_issues(found: Pipeline | None, issues: list[ConfigIssue], document: Mapping[str, Any]) -> Pipeline:
    """Return the pipeline that was ``found`` in ``document``. Raises InvalidPipelineError when there are issues."""
    if found is not None and not issues:
        return found
    error = InvalidPipelineError.from_issues(issues)
    error.readable = found
    name = document.get("name")
    if isinstance(name, str) and re.fullmatch(PIPELINE_NAME, name) and redact(name) == name:
        error.name = name
    raise error


def read_pipeline(
    file: str, document: Mapping[str, Any], registry: MethodRegistry, written: Mapping[str, Any]
) -> tuple[Pipeline | None, list[ConfigIssue]]:
    """Return what can be read of the pipeline, and every issue that keeps it from being one.

    ``written`` is the document before the variables were put in.
    """
    issues: list[ConfigIssue] = []
    config: PipelineConfig | None = None
    try:
        config = PipelineConfig.of_json(unescape(document))
    except ValidationError as error:
        issues += issues_of(file, error, PipelineConfig, document, written=written)
    methods: list[StepMethod] = []
    unreadable: set[int] = set()
    for index, step in _steps(document):
        method, found = _method(file, index, step, registry, written["steps"][index])
        if method is not None:
            methods.append(method)
        if found:
            unreadable.add(index)
            issues += found
    if config is not None:
        issues += _pipeline_issues(file, config, document)
    read = config or _stand_in_config(document)
    if len(methods) < len(read.steps):
        return None, sorted_issues(issues)
    return Pipeline(file, read, tuple(methods), document, frozenset(unreadable)), sorted_issues(issues)


def sorted_issues(issues: Iterable[ConfigIssue]) -> list[ConfigIssue]:
    """Return ``issues``, each once, in the order of the places in the file."""
    return sorted(set(issues), key=lambda issue: [_natural(part) for part in issue.pointer.split("/")])


def _natural(part: str) -> tuple[int, int, str]:
    return (0, int(part), "") if part.isdigit() else (1, 0, part)


def _steps(document: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    steps = document.get("steps")
    for index, step in enumerate(steps if isinstance(steps, list) else ()):
        if isinstance(step, dict):
            yield index, step


def _method(
    file: str, index: int, step: dict[str, Any], registry: MethodRegistry, written: dict[str, Any]
) -> tuple[StepMethod | None, list[ConfigIssue]]:
    """Return the step's method with its config, or with issues a stand-in; None for a method that there is not.

    What the envelope's model says already is not said again.
    """
    step_type, name, config = step.get("type"), step.get("method"), step.get("config", {})
    if not (isinstance(step_type, str) and isinstance(name, str) and isinstance(config, dict)):
        return None, []
    cls = registry.get((step_type, name))
    if cls is None:
        found = _unknown_method(step_type, name, registry)
        if found is None:
            return None, []
        return None, [ConfigIssue(file, pointer("steps", index, "method"), as_written(found, name, written["method"]))]
    try:
        return cls.of_json(unescape(config)), []
    except ValidationError as error:
        place = ("steps", index, "config")
        return _stand_in(cls, config), list(issues_of(file, error, cls, config, place, written.get("config")))


def _stand_in(cls: type[StepMethod], config: Mapping[str, Any]) -> StepMethod:
    """Return the method of a step that can't be read, with nothing of its config but the name of its DataFrame."""
    name = config.get("registerAs")
    known: dict[str, Any] = {"register_as": name} if isinstance(name, str) else {}
    return cls.model_construct(**known)


def _stand_in_config(document: Mapping[str, Any]) -> PipelineConfig:
    """Return what stands around the steps, when it can't be read, with nothing but the names of the steps."""
    steps = document.get("steps")
    names = [step.get("name") if isinstance(step, dict) else None for step in steps] if isinstance(steps, list) else []
    # By Any: a type checker asks for the other keys, too.
    envelope: Any = StepEnvelope.model_construct
    config: Any = PipelineConfig.model_construct
    envelopes = tuple(envelope(name=name if isinstance(name, str) else None) for name in names)
    return cast(PipelineConfig, config(mode="batch", steps=envelopes))


def _unknown_method(step_type: str, name: str, registry: MethodRegistry) -> str | None:
    """Return what is wrong with the ``name`` of a method; None where it is the type alone."""
    of_type = sorted(method for kind, method in registry if kind == step_type)
    if not of_type:
        return None
    elsewhere = [kind for kind, method in registry if method == name]
    if elsewhere:
        return f"{name!r} is a method of type {elsewhere[0]!r}, not of {step_type!r}"
    near = did_you_mean(name, of_type)
    return f"there is no {step_type} method {name!r}{near} (expected one of: {', '.join(of_type)})"


def _pipeline_issues(file: str, config: PipelineConfig, document: Mapping[str, Any]) -> Iterator[ConfigIssue]:
    if config.automation == "on_cron" and config.schedule is None:
        yield ConfigIssue(file, "/automation", "'on_cron' needs a 'schedule' that says when")
    if config.sensor is not None and config.mode == "batch":
        yield ConfigIssue(file, "/sensor", "a sensor belongs to a streaming pipeline; use 'schedule' or 'automation'")
    if config.mode == "streaming":
        advice = {
            "partitions": "a streaming pipeline has no partitions",
            "automation": "a streaming pipeline is started by its sensor, or by a 'schedule': leave it out",
            "retry": "a stream that failed is started again by its sensor: use 'sensor' and its 'maxRestarts'",
        }
        for key, message in advice.items():
            if getattr(config, key) is not None:
                yield ConfigIssue(file, f"/{key}", message)
        for index, step in enumerate(config.steps):
            if step.retry is not None:
                yield ConfigIssue(file, pointer("steps", index, "retry"), advice["retry"])
        if not config.optimize:
            yield ConfigIssue(file, "/optimize", "of a streaming pipeline nothing is decided for speed: leave it out")
    if config.partitions is None:
        used: list[ConfigIssue] = []

        def unpartitioned(name: str, at: str) -> None:
            if name == "partition":
                used.append(ConfigIssue(file, at, "uses ${partition}, but the pipeline has no 'partitions'"))

        substitute(dict(document), {}, unpartitioned, RUN_VARIABLES)
        yield from used
