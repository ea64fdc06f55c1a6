"""What goes wrong outside: one clear error each, with the step in it, and no half-written table."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline_assets_tests.config_documents import batch, extract_file, transform
from pipeline_assets_tests.integration.location import Location, failure_text

CUSTOMERS = {"type": "extract", "method": "fromPostgres", "config": {"table": "customers", "registerAs": "customers"}}
ORDERS = {
    "type": "extract",
    "method": "fromS3",
    "config": {"path": "s3a://data/orders/*.parquet", "registerAs": "orders"},
}


def postgres(**config: Any) -> dict[str, Any]:
    return {"type": "extract", "method": "fromPostgres", "config": config}


def s3(path: str) -> dict[str, Any]:
    return {"type": "extract", "method": "fromS3", "config": {"path": path, "format": "parquet"}}


def join(**config: Any) -> dict[str, Any]:
    return transform("joinDataFrames", inputDataFrames=["customers", "orders"], **config)


@pytest.fixture
def reach_sources(sources: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in sources.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("reach_sources")
@pytest.mark.parametrize(
    ("steps", "index", "step", "expected"),
    [
        pytest.param([postgres(table="custmers")], 0, "extract fromPostgres", ["custmers", "customers"], id="table"),
        pytest.param([s3("s3a://data/nowhere/*.parquet")], 0, "extract fromS3", ["s3a://data/nowhere"], id="path"),
        pytest.param([s3("s3a://no-such-bucket/x")], 0, "extract fromS3", ["no-such-bucket"], id="bucket"),
        pytest.param([extract_file("a", "/empty", format="json")], 0, "extract fromFile", ["empty"], id="empty-folder"),
        pytest.param(
            [CUSTOMERS, ORDERS, join(leftKeys=["id"], rightKeys=["custmer_id"])],
            2,
            "transform joinDataFrames",
            ["custmer_id", "did you mean 'customer_id'", "order_date"],
            id="key",
        ),
        pytest.param(
            [CUSTOMERS, ORDERS, join(leftKeys=["first_order_date"], rightKeys=["customer_id"])],
            2,
            "transform joinDataFrames",
            ["first_order_date", "date", "customer_id", "bigint"],
            id="key-types",
        ),
        pytest.param(
            [ORDERS, transform("filterRows", condition="amuont > 1")],
            1,
            "transform filterRows",
            ["amuont", "did you mean 'amount'"],
            id="column",
        ),
        pytest.param(
            [ORDERS, transform("filterRows", condition="amount >")],
            1,
            "transform filterRows",
            ["Syntax error", "amount >"],
            id="syntax",
        ),
    ],
)
def test_each_is_one_clear_error(
    location: Location, steps: list[dict[str, Any]], index: int, step: str, expected: list[str]
) -> None:
    (location.folder / "root" / "empty").mkdir(parents=True)
    location.write(batch("bad-input", *steps))
    text = failure_text(location.run("bad_input", fail=True))
    assert f"bad-input: step {index} ({step}): " in text, text
    for words in expected:
        assert words in text
    first = next(line for line in text.splitlines() if "bad-input: step" in line)
    assert "o123" not in first
    assert "Py4J" not in text.partition("OriginalError")[0]
    assert not location.warehouse.exists()


@pytest.mark.parametrize("variable", ["PGPASSWORD", "AWS_SECRET_ACCESS_KEY"])
@pytest.mark.usefixtures("reach_sources")
def test_credentials_that_are_not_there(location: Location, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv(variable)
    location.write(batch("bad-input", CUSTOMERS if variable == "PGPASSWORD" else ORDERS))
    text = failure_text(location.run("bad_input", fail=True))
    assert f"environment variable {variable} is not set" in text
    assert "bad-input: step 0" in text


@pytest.mark.usefixtures("reach_sources")
def test_a_wrong_password_is_not_shown(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "wrong-canary-password")
    location.write(batch("bad-input", CUSTOMERS))
    text = failure_text(location.run("bad_input", fail=True))
    assert "bad-input: step 0 (extract fromPostgres)" in text
    assert "wrong-canary-password" not in text


def test_a_server_that_is_not_there(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGPASSWORD", "x")
    location.write(batch("bad-input", CUSTOMERS))
    text = failure_text(location.run("bad_input", fail=True))
    assert "127.0.0.1:1" in text
    assert "bad-input: step 0 (extract fromPostgres)" in text
