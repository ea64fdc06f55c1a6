"""Command lines as pages show them, held against the programs that they call, without running these."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click

from pipeline_assets_tests.docs.pages import PROJECT

# Programs that nobody needs to have; how they are called is not known here.
ELSEWHERE = ("docker", "helm", "kubectl", "systemctl", "vault")
# What stands for a file or a folder: some of these commands want theirs to be there.
_PLACEHOLDERS = {"FILE": PROJECT / "README.md", "FILES": PROJECT / "README.md", "FOLDER": PROJECT / "configs"}


def problems(text: str) -> Iterator[str]:
    """Yield what is wrong with the commands in ``text``, a piece of a shell script."""
    parsed = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    if parsed.returncode:
        yield parsed.stderr
        return
    # What is between <<'END' and END is for the command to read.
    without_input = re.sub(r"<<'?(\w+)'?\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    for line in without_input.replace("\\\n", " ").splitlines():
        for words in _simple_commands(line):
            problem = _problem(words)
            if problem is not None:
                yield f"{' '.join(words)}: {problem}"


def is_ours(text: str) -> bool:
    """Return whether inline code is a call of one of the programs that are looked at more closely."""
    words = text.split()
    return len(words) > 1 and words[0] in (*_PROGRAMS, "make", "python", ".venv/bin/pytest")


def _simple_commands(line: str) -> Iterator[list[str]]:
    """Yield the commands of a line, without brackets around what may be left out, redirections and assignments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    tokens = iter([*lexer, ";"])
    for token in tokens:
        if set(token) <= set(";&|()"):
            if words:
                yield words
            words = []
        elif set(token) <= set("<>"):
            next(tokens)
        elif words or not re.match(r"[A-Z_]+=", token):
            words.append(re.sub(r"^\[(-.*|[A-Z]+)\]$", r"\1", token))


def _problem(words: list[str]) -> str | None:
    program, arguments = words[0], words[1:]
    if program in _PROGRAMS:
        return _click_problem(_PROGRAMS[program](), program, arguments)
    if program == "make":
        return next((f"there is no target {target}" for target in arguments if not _is_target(target)), None)
    if program == "python":
        return _python_problem(arguments)
    if "/" in program:
        paths = [program, *(argument for argument in arguments if "/" in argument)]
        return next((f"there is no {path}" for path in paths if not (PROJECT / path).exists()), None)
    if program in ELSEWHERE or _is_builtin(program):
        return None
    if Path(sys.executable).with_name(program).exists() or shutil.which(program):
        return None
    return f"there is no program {program}"


def _click_problem(command: click.Command, name: str, arguments: list[str]) -> str | None:
    """Return what click says to the arguments: it parses them, and calls nothing."""
    given = [str(_PLACEHOLDERS.get(argument, argument)) for argument in arguments]
    context: click.Context | None = None
    try:
        while True:
            context = command.make_context(name, list(given), parent=context)
            given = [*context._protected_args, *context.args]
            if not isinstance(command, click.Group) or not given:
                return None
            found_name, found, given = command.resolve_command(context, given)
            assert found is not None
            command, name = found, found_name or ""
    except click.UsageError as error:
        return error.format_message()


def _python_problem(arguments: list[str]) -> str | None:
    if arguments[0] == "-":
        return None  # its program is what it is given as input
    if arguments[0] != "-m":
        return None if (PROJECT / arguments[0]).exists() else f"there is no {arguments[0]}"
    if importlib.util.find_spec(arguments[1]) is None:
        return f"there is no module {arguments[1]}"
    if arguments[1] == "benchmarks":
        from benchmarks.__main__ import main

        return _click_problem(main, "benchmarks", [each for each in arguments[2:] if each != "--help"])
    return None


@cache
def _is_target(name: str) -> bool:
    done = subprocess.run(["make", "--dry-run", name], cwd=PROJECT, capture_output=True, text=True, check=False)
    return done.returncode == 0


@cache
def _is_builtin(name: str) -> bool:
    return (
        subprocess.run(["bash", "-c", f"type -t {shlex.quote(name)}"], capture_output=True, check=False).returncode == 0
    )


def _pipeline_assets() -> click.Command:
    from pipeline_assets.cli import main

    return main


def _dagster() -> click.Command:
    from dagster._cli import create_dagster_cli

    return create_dagster_cli()


def _dg() -> click.Command:
    from dagster_dg_cli.cli import create_dg_cli

    return create_dg_cli()


_PROGRAMS = {"pipeline-assets": _pipeline_assets, "dagster": _dagster, "dg": _dg}
