"""The audit file: what each line says, and that no line is changed, removed or moved without being found."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner
from filelock import FileLock

from pipeline_assets.cli import main
from pipeline_assets.credentials import Secrets
from pipeline_assets.credentials.audit import Access, AuditEntry, AuditFile
from pipeline_assets.credentials.policy import SecretsPolicy
from pipeline_assets.credentials.secrets import Consumer, secrets_needed_by
from pipeline_assets.errors import ConfigurationError, CredentialError, StepLocation

CANARY = "canary-5f2c"


def access(path: str) -> Access:
    return Access("2026-01-01T00:00:00.000+00:00", "run", "p", "0 (a b)", "env", path, (), "allowed", "ok", None, 0.1)


@pytest.fixture
def file(tmp_path: Path) -> AuditFile:
    found = AuditFile(tmp_path / "audit" / "secrets.jsonl")
    for number in range(1, 7):
        found.append(access(f"V{number}"))
    assert found.verify() == (6, [])
    return found


def test_what_a_line_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", CANARY)
    file = AuditFile(tmp_path / "secrets.jsonl")
    with Secrets(audit=file, consumer=Consumer(run="1234", pipeline="job")) as secrets:
        secrets.fetch("env:PGPASSWORD")
        with (
            secrets_needed_by(StepLocation("customer-360", 2, "extract", "fromPostgres")),
            pytest.raises(CredentialError),
        ):
            secrets.fetch(f"file:{tmp_path}/nowhere")
    with Secrets(SecretsPolicy.VAULT_ONLY, audit=file) as secrets, pytest.raises(CredentialError):
        secrets.fetch("env:PGPASSWORD")
    text = file.path.read_text()
    assert CANARY not in text
    first, second, third = (json.loads(line) for line in text.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first.pop("duration_ms") >= 0
    assert (first.pop("previous"), len(first.pop("hash"))) == ("0" * 64, 64)
    assert first == {
        "number": 1, "run": "1234", "pipeline": "job", "step": None, "source": "env", "path": "PGPASSWORD",
        "fields": [], "policy": "allowed", "result": "ok", "reason": None,
    }  # fmt: skip
    assert (second["pipeline"], second["step"]) == ("customer-360", "2 (extract fromPostgres)")
    assert (second["policy"], second["result"]) == ("allowed", "CredentialError")
    assert "nowhere cannot be read" in second["reason"]
    assert (third["run"], third["policy"], third["result"]) == (None, "refused", "CredentialError")
    assert file.verify() == (3, [])
    assert file.path.stat().st_mode & 0o777 == 0o600


def lines(file: AuditFile) -> list[str]:
    return file.path.read_text().splitlines(keepends=True)


def problems(file: AuditFile, changed: list[str]) -> list[str]:
    file.path.write_text("".join(changed))
    return [str(problem) for problem in file.verify()[1]]


def test_a_changed_line(file: AuditFile) -> None:
    before = lines(file)
    before[2] = before[2].replace('"V3"', '"V9"')
    assert problems(file, before) == ["line 3: was changed: its hash does not fit what it says"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"path": "V3"', '"path": "V9", "path": "V3"'),
        ('"number": 3', '"number": 3.9'),
        ('"duration_ms": 0.1', '"duration_ms": 0.10'),
        ('"path": "V3"', '"path": "\\u00563"'),
        ('"source": "env", "path": "V3"', '"path": "V3", "source": "env"'),
        ('"source": "env", ', '"source":"env",  '),
        ("}\n", "}\r\n"),
    ],
)
def test_a_line_that_says_the_same_otherwise(file: AuditFile, old: str, new: str) -> None:
    before = lines(file)
    before[2] = before[2].replace(old, new)
    assert before != lines(file)
    assert problems(file, before) == ["line 3: was changed: it says the same, but not as it was written"]


@pytest.mark.parametrize("line", ["\n", "[]\n", '{"number": 1e999}\n'])
def test_a_line_that_was_put_in(file: AuditFile, line: str) -> None:
    before = lines(file)
    assert problems(file, [*before[:2], line, *before[2:]]) == [
        "line 3: is no line of an audit file: it was changed or cut off"
    ]


def test_a_changed_line_that_is_no_text(file: AuditFile) -> None:
    before = lines(file)
    before[2] = before[2].replace("V3", "\\ud800")
    assert problems(file, before) == ["line 3: was changed: its hash does not fit what it says"]


def test_a_changed_line_with_a_hash_that_fits(file: AuditFile) -> None:
    before = lines(file)
    second = AuditEntry.parse(before[1].encode())
    assert second is not None
    before[2] = AuditEntry.after(second, access("V9")).text
    assert problems(file, before) == ["line 4: does not follow from the line before it: one of the two was changed"]


def test_the_last_line_changed_with_a_hash_that_fits(file: AuditFile) -> None:
    before = lines(file)
    fifth = AuditEntry.parse(before[4].encode())
    assert fifth is not None
    before[5] = AuditEntry.after(fifth, access("V9")).text
    assert problems(file, before) == ["line 6: was changed: it is not the line that was written last"]


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        ([0], "line 1: 1 line is missing before it: number 2 comes after 0"),
        ([2], "line 3: 1 line is missing before it: number 4 comes after 2"),
        ([2, 3], "line 3: 2 lines are missing before it: number 5 comes after 2"),
        ([5], "line 5: 1 line is missing after it: the last has number 6"),
        ([0, 1, 2, 3, 4, 5], "line 0: 6 lines are missing after it: the last has number 6"),
    ],
)
def test_removed_lines(file: AuditFile, removed: list[int], expected: str) -> None:
    kept = [line for index, line in enumerate(lines(file)) if index not in removed]
    assert problems(file, kept) == [expected]


@pytest.mark.timeout(60)
def test_a_forged_number_is_not_counted_up_to(file: AuditFile) -> None:
    before = lines(file)
    before[2] = before[2].replace('"number": 3', '"number": 1000000000000')
    first, second, *_ = problems(file, before)
    assert first == "line 3: was changed: its hash does not fit what it says"
    assert second == "line 3: 999999999994 lines are missing before it: number 1000000000000 comes after 2"


def test_moved_and_repeated_lines(file: AuditFile) -> None:
    before = lines(file)
    swapped = [before[0], before[2], before[1], *before[3:]]
    assert problems(file, swapped) == ["line 3: is not where it was: number 2 comes after number 3"]
    assert problems(file, [*before[:3], before[1], *before[3:]]) == [
        "line 4: is not where it was: number 2 comes after number 3"
    ]


def test_a_line_that_is_none(file: AuditFile) -> None:
    before = lines(file)
    assert problems(file, [*before[:3], "oops\n", *before[4:]]) == [
        "line 4: is no line of an audit file: it was changed or cut off"
    ]


def test_what_comes_after_a_removed_end_is_chained_to_what_was_there(file: AuditFile) -> None:
    file.path.write_text("".join(lines(file)[:4]))
    file.append(access("V7"))
    assert [str(it) for it in file.verify()[1]] == ["line 5: 2 lines are missing before it: number 7 comes after 4"]


def test_a_process_that_died_between_line_and_head(file: AuditFile) -> None:
    head = file.path.with_name("secrets.jsonl.head")
    before = head.read_bytes()
    file.append(access("V7"))
    head.write_bytes(before)
    assert file.verify() == (7, [])
    file.append(access("V8"))
    assert file.verify() == (8, [])


def test_the_head_is_on_disk_before_the_next_line(file: AuditFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails here: what is put on disk, with how many bytes, and when the head takes its place."""
    done: list[tuple[str, int, int]] = []
    fsync, replace = os.fsync, os.replace

    def note(what: str, found: os.stat_result, *, sized: bool = True) -> None:
        done.append((what, found.st_ino, found.st_size if sized else 0))

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        found = os.fstat(descriptor)
        note("fsync", found, sized=not stat.S_ISDIR(found.st_mode))

    def noted_replace(source: Path, target: Path) -> None:
        note("replace", os.stat(source))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    file.append(access("V7"))
    line, head = file.path.stat(), file.path.with_name("secrets.jsonl.head").stat()
    assert done == [
        ("fsync", line.st_ino, line.st_size),
        ("fsync", head.st_ino, head.st_size),
        ("replace", head.st_ino, head.st_size),
        ("fsync", file.path.parent.stat().st_ino, 0),
    ]


def test_a_line_that_was_cut_off_does_not_take_the_next_with_it(file: AuditFile) -> None:
    file.path.write_bytes(file.path.read_bytes() + b'{"number": 7, "ru')
    file.append(access("V7"))
    count, found = file.verify()
    assert count == 8
    assert [str(it) for it in found] == ["line 7: is no line of an audit file: it was changed or cut off"]


def test_a_disk_that_fills_up_in_mid_line_leaves_nothing_of_it(file: AuditFile) -> None:
    before = file.path.read_bytes()
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom pipeline_assets.credentials import Secrets\n"
        "from pipeline_assets.credentials.audit import AuditFile\n"
        "from pipeline_assets.errors import CredentialError\n"
        "room = int(sys.argv[2])\nresource.setrlimit(resource.RLIMIT_FSIZE, (room, room))\n"
        "try: Secrets(audit=AuditFile(Path(sys.argv[1]))).fetch('env:PATH')\n"
        "except CredentialError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(file.path), str(len(before) + 20)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "can't be written (File too large)" in done.stdout
    assert file.path.read_bytes() == before
    file.append(access("V7"))
    assert file.verify() == (7, [])


def test_what_the_head_can_not_be_written_for_is_not_in_the_file(file: AuditFile) -> None:
    before = lines(file)
    in_the_way = file.path.with_name(f"{file.path.name}.head.new")
    in_the_way.mkdir()
    for number in range(3):
        with pytest.raises(CredentialError, match="can't be written"):
            file.append(access(f"REFUSED{number}"))
        assert lines(file) == before
    in_the_way.rmdir()
    file.append(access("V7"))
    assert [json.loads(line)["path"] for line in lines(file)] == [f"V{number}" for number in range(1, 8)]
    assert file.verify() == (7, [])


def test_a_line_stays_where_the_head_has_come_to_tell_of_it(file: AuditFile, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def fails_for_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", fails_for_folders)
        for _ in range(2):
            with pytest.raises(CredentialError, match="Input/output error"):
                file.append(access("REFUSED"))
    file.append(access("V9"))
    assert [json.loads(line)["number"] for line in lines(file)] == list(range(1, 10))
    assert file.verify() == (9, [])


def test_verify_writes_nothing_and_waits_for_nobody(file: AuditFile) -> None:
    lock = file.path.with_name(f"{file.path.name}.lock")
    with FileLock(lock):
        assert file.verify() == (6, [])
    lock.unlink()
    before = sorted(file.path.parent.iterdir())
    assert file.verify() == (6, [])
    assert sorted(file.path.parent.iterdir()) == before


def test_lines_that_are_written_while_the_file_is_verified(file: AuditFile, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, read_head = AuditFile(file.path), file._read_head
    more = iter(["V7", "V8", "V9"])

    def read_late() -> AuditEntry | None:
        for path in islice(more, 2):
            writer.append(access(path))
        return read_head()

    monkeypatch.setattr(file, "_read_head", read_late)
    assert file.verify() == (9, [])


def test_without_a_head_that_is_said(file: AuditFile) -> None:
    file.path.with_name("secrets.jsonl.head").unlink()
    (problem,) = file.verify()[1]
    assert "the file's .head is missing" in str(problem)
    file.path.write_bytes(b"")
    count, (problem,) = file.verify()
    assert count == 0
    assert "the file is empty, and its .head is missing" in str(problem)


def test_several_processes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "secrets.jsonl"
    program = (
        "import sys\nfrom pathlib import Path\nfrom pipeline_assets.credentials import Secrets\n"
        "from pipeline_assets.credentials.audit import AuditFile\n"
        "secrets = Secrets(audit=AuditFile(Path(sys.argv[1])))\n"
        "for _ in range(40): secrets.fetch('env:PATH')\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, str(path)]) for _ in range(4)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0, 0]
    assert AuditFile(path).verify() == (160, [])


def test_no_secret_is_given_out_unnoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", CANARY)
    (tmp_path / "file").write_text("")
    secrets = Secrets(audit=AuditFile(tmp_path / "file" / "audit"))
    with pytest.raises(CredentialError, match="can't be written .* secrets are not given out without it"):
        secrets.fetch("env:PGPASSWORD")


def test_verify_on_the_command_line(file: AuditFile, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(main, ["audit", "verify", str(file.path)])
    assert (done.exit_code, done.stdout) == (0, f"{file.path}: 6 lines, none changed, removed or moved\n")
    file.path.write_text("".join(lines(file)[1:]))
    monkeypatch.setenv("PIPELINE_ASSETS_AUDIT_FILE", str(file.path))
    done = CliRunner().invoke(main, ["audit", "verify"])
    assert done.exit_code == 1
    assert done.stderr == f"{file.path}: line 1: 1 line is missing before it: number 2 comes after 0\n"
    done = CliRunner().invoke(main, ["audit", "verify", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["problems"][0]["line"] == 1
    monkeypatch.delenv("PIPELINE_ASSETS_AUDIT_FILE")
    assert CliRunner().invoke(main, ["audit", "verify"]).exit_code == 2


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be read: No such file"):
        AuditFile(tmp_path / "nowhere" / "secrets.jsonl").verify()
    assert list(tmp_path.iterdir()) == []
