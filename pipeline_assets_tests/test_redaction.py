from __future__ import annotations

import base64
import html
import json
import re
import string
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_assets import redaction
from pipeline_assets.errors import PipelineExecutionError
from pipeline_assets.redaction import (
    MASK,
    TEXT_PATTERN,
    is_secret_name,
    redact,
    redact_data,
    register_secret,
    secret_shapes,
)

AWKWARD = "p@ss/w\"ö'r\\d 100%+=&*~"
# No key of anybody: the body is a text.
PRIVATE_KEY = f"-----BEGIN RSA PRIVATE KEY-----\n{base64.b64encode(b'no key at all ' * 12).decode()}\n"
PRIVATE_KEY += "-----END RSA PRIVATE KEY-----"
JWT = ".".join(
    base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (b'{"alg":"HS256"}', b'{"sub":"1"}', b"signed")
)


@pytest.mark.parametrize(
    "text",
    [
        "jdbc:postgresql://h:5432/db?user=me&password={}&ssl=true",
        "postgresql://me:{}@h/db",
        "fs.s3a.bucket.data.secret.key={}",
        "fs.s3a.bucket.data.access.key -> {}, other -> 1",
        "Map(password -> Some({}), user -> me)",
        'sasl.jaas.config=org.apache.Module required username="me" password="{}";',
        "{{'sessionToken': '{}', 'region': 'x'}}",
        '{{"password": "{}", "user": "me"}}',
        '{{"config": "{{\\"password\\": \\"{}\\"}}"}}',
        "aws_secret_access_key: {}",
        "X-Vault-Token: {}",
        "CREATE USER me PASSWORD '{}'",
        "https://h/x?X-Amz-Signature={}&X-Amz-Date=1",
        "PGPASSWORD={} psql",
        "Authorization: {}, at h",
        "curl -H 'Proxy-Authorization:{}' h",
    ],
)
def test_values_are_masked_by_their_names(text: str) -> None:
    masked = redact(text.format("s3cr3t+y=="))
    assert "s3cr3t" not in masked
    assert masked.replace(MASK, "") == text.format("")
    assert redact(masked) == masked
    assert secret_shapes(text.format("s3cr3t+y==")) != ()
    assert secret_shapes(masked) == ()


@pytest.mark.parametrize(
    ("shape", "before", "secret", "after"),
    [
        ("private key", "key: ", PRIVATE_KEY, " and more"),
        ("private key", "one line: ", PRIVATE_KEY.replace("\n", "\\n"), '"'),
        ("JAAS config", "org.x.ScramLoginModule required ", 'clientId="me" keyTab="/x"', "; more"),
        ("JWT", "sent ", JWT, " to h"),
        ("AWS access key", "with ", f"AKIA{'Q7' * 8}", ", denied"),
        ("AWS access key", "with ", f"ASIA{'Q7' * 8}", ", denied"),
        ("bearer token", "sent Bearer ", "abc123.def-456", " to h"),
        ("service token", "token of Vault (", f"hvs.{'x1' * 12}", ")"),
        ("service token", "git: ", f"ghp_{'x1' * 18}", " is old"),
        ("user and password in a URL", "redis://me:", "s3cr3t", "@h/1"),
    ],
)
def test_shapes_are_masked(shape: str, before: str, secret: str, after: str) -> None:
    masked = redact(before + secret + after)
    assert masked.startswith(before)
    assert masked.endswith(after)
    assert MASK in masked
    for line in secret.replace("\\n", "\n").splitlines():
        assert line.startswith("-----") or line not in masked
    assert shape in secret_shapes(before + secret + after)


@pytest.mark.parametrize(
    ("before", "secret", "after"),
    [
        ("postgresql://me:", "p@ss@w0rd", "@h/shop, a@b"),
        ("CREATE USER me PASSWORD '", "a''s-s3cret", "' VALID UNTIL 'x'"),
        ("password='", "s3cret''", "', user='me'"),
        ("Authorization: ", "ApiKey abc123def", ", at h"),
        ("curl -H 'Proxy-Authorization:", "Custom-Scheme abc123def", "' h"),
        ("Authorization: ", "Token abcdefghijklmnopqrstuvwx", "\nHost: h"),
    ],
)
def test_nothing_of_a_secret_is_left(before: str, secret: str, after: str) -> None:
    assert redact(f"{before}{secret}{after}") == f"{before}{MASK}{after}"
    assert redact(f"{before}{MASK}{after}") == f"{before}{MASK}{after}"


@pytest.mark.parametrize(
    "text",
    [
        "Filter (token_count#3 > 1)",
        "there is no column 'password' (columns: id, password, token)",
        "IAMInstanceCredentialsProvider : software.amazon.awssdk.SdkClientException: no",
        "https://host:8200/v1/secret/data/x",
        "Vault secret secret/data/postgres#password: permission denied: the token's policy must allow reading it",
        "connections.json: /postgres/default/password: a secret is given by reference",
        'the password ("password": "vault:secret/data/postgres#password") and sasl.password=env:KAFKA_PASSWORD',
        "ReadSchema: struct<token:string,password:array<int>>",
        "wrong password: check the connection's user",
        "password authentication failed for user \"me\"",
        "commit 9fceb02d0ae598e95dc970b74767f19372d61af8, at 10:00:00@h, s3a://bucket/a@b/c",
        "no bearer authentication",
        "authorization: denied by policy 12, and authorization: unknown user-17",
        "Authorization: the class org.example.Authorizer.StandardAuthorizer is not there",
        "password='', user='me'",
        'while executing op "wrong_password"::\n\nCredentialError: orders: step 1',
        "passwordFile=/run/secrets/x",
        "",
    ],
)  # fmt: skip
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text
    assert secret_shapes(text) == ()


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "PGPASSWORD",
        "sslpassword",
        "sasl.jaas.config",
        "accessKeyId",
        "fs.s3a.bucket.x.access.key",
        "authToken",
        "secret_id",
        "ssl.keystore.password",
        "ssl.key.password",
        "ssl.keystore.key",
        "private_key",
        "api-key",
        "X-Vault-Token",
        "secretAccessKey",
        "fs.azure.account.key.x.blob.core.windows.net",
        "client_credentials",
    ],
)
def test_names_of_secrets(key: str) -> None:
    assert is_secret_name(key)


@pytest.mark.parametrize(
    "key",
    [
        "key",
        "keys",
        "leftKeys",
        "partitionKey",
        "key.deserializer",
        "primary_key",
        "tokenize",
        "passwordFile",
        "ssl.truststore.location",
        "sasl.oauthbearer.token.endpoint.url",
        "fs.s3a.aws.credentials.provider",
        "fs.s3a.delegation.token.binding",
        "user",
        "host",
        "secretary.email.file",
    ],
)
def test_names_of_other_things(key: str) -> None:
    assert not is_secret_name(key)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda value: value, id="plain"),
        pytest.param(lambda value: quote(value, safe=""), id="url"),
        pytest.param(quote_plus, id="form"),
        # What java.net.URLEncoder gives for the values below.
        pytest.param(
            {
                AWKWARD: "p%40ss%2Fw%22%C3%B6%27r%5Cd+100%25%2B%3D%26*%7E",
                "plainvalue42/x": "plainvalue42%2Fx",
            }.__getitem__,
            id="java",
        ),
        pytest.param(lambda value: re.sub("%..", lambda found: found[0].lower(), quote(value, safe="")), id="lower"),
        pytest.param(lambda value: base64.b64encode(value.encode()).decode(), id="base64"),
        pytest.param(lambda value: base64.urlsafe_b64encode(value.encode()).decode().rstrip("="), id="base64url"),
        pytest.param(json.dumps, id="json"),
        pytest.param(lambda value: json.dumps(value, ensure_ascii=False), id="json-unicode"),
        pytest.param(lambda value: json.dumps({"a": json.dumps({"b": value})}), id="json-in-json"),
        pytest.param(repr, id="python"),
        pytest.param(lambda value: value.replace("'", "''"), id="sql"),
        pytest.param(html.escape, id="html"),
    ],
)
def test_known_values_are_masked_in_every_form(form: Callable[[str], str]) -> None:
    for value in (AWKWARD, "plainvalue42/x"):
        register_secret(value)
        written = form(value)
        assert MASK in redact(f"<{written}>")
        assert value not in redact(f"<{written}>")
        assert written.strip("\"'") not in redact(f"<{written}>")


def test_a_text_that_came_before_its_secret_was_known_is_masked_when_it_is_shown() -> None:
    error = PipelineExecutionError("no more kumquats", details="kumquats")
    register_secret("kumquats")
    assert "kumquats" not in str(error)
    assert "kumquats" not in PipelineExecutionError("no more kumquats").message


def test_short_values_are_masked_where_they_stand_alone() -> None:
    register_secret("duck")
    assert redact("a duck, ducks, reproduckt: duck/duck") == f"a {MASK}, ducks, reproduckt: {MASK}/{MASK}"
    register_secret("hunt3r2")
    for before in ("a%3D", "a%0d%0A", "a\\n", "a\\\\r\\\\n", "a\\t", "a\\u003d", "a="):
        assert redact(f"{before}hunt3r2, {before}hunt3r20") == f"{before}{MASK}, {before}hunt3r20"
    for value in ("", "abc", "true", "None"):
        register_secret(value)
    assert redact("abc is true, None is not") == "abc is true, None is not"


def test_a_value_of_several_lines_is_masked_line_by_line() -> None:
    register_secret(PRIVATE_KEY)
    register_secret('{\n  "client": "someone-at-example",\n  "id": 1\n}')
    assert PRIVATE_KEY.splitlines()[1] not in redact(f"at line 2: {PRIVATE_KEY.splitlines()[1]}")
    assert redact('  "client": "someone-at-example",') == f"  {MASK}"
    register_secret("user=nobody\npass-1234\n  eight-88\nshort\n")
    assert redact("pass-1234 eight-88 short") == f"{MASK} {MASK} short"


def test_secrets_in_a_jaas_config_or_a_url_are_known_alone() -> None:
    register_secret('org.apache.X.ScramLoginModule required username="someone" password="in-jaas-1";')
    register_secret(r"""org.apache.X.ScramLoginModule required username="a" password="quo\"ted\\too";""")
    assert redact('someone: quo"ted\\too') == f"someone: {MASK}"
    register_secret("https://someone:in-url-1@host/path")
    assert redact("someone: in-jaas-1 in-url-1") == f"someone: {MASK} {MASK}"


def test_of_two_values_the_longer_goes_first() -> None:
    register_secret("aaaa-bbbb")
    register_secret("aaaa-bbbb-cccc")
    assert redact("aaaa-bbbb-cccc aaaa-bbbb") == f"{MASK} {MASK}"


def test_what_is_retired_is_masked_for_a_while_and_then_forgotten() -> None:
    known = redaction._Known()
    known.add("live-secret")
    sizes = set()
    for number in range(200):
        known.add(f"token-{number:03d}/of-a-tick")
        known.retire(f"token-{number:03d}/of-a-tick")
        if number >= 100:
            sizes.add(len(known._inside))
    assert len(sizes) == 1, "it grows no more"
    assert known.redact("token-199/of-a-tick token-168/of-a-tick") == f"{MASK} {MASK}"
    assert known.redact("token-167/of-a-tick") == "token-167/of-a-tick"
    assert known.redact("live-secret") == MASK


def test_what_is_forgotten_takes_nothing_with_it_that_lives() -> None:
    known = redaction._Known()
    for value in ("live-secret", "live-secret\n", "duck", "back-again"):
        known.add(value)
    for value in ("live-secret\n", "duck", "back-again", "never-added"):
        known.retire(value)
    known.add("back-again")
    for number in range(100):
        known.add(f"token-{number:03d}")
        known.retire(f"token-{number:03d}")
    assert known.redact("a duck, live-secret, back-again") == f"a duck, {MASK}, {MASK}"


def test_data_is_masked_by_key_and_by_value() -> None:
    data = {"options": {"sasl.password": "x1", "retries": 3, "token": None}, "list": ["password=x1", 1.5], "key": "k"}
    assert redact_data(data) == {
        "options": {"sasl.password": MASK, "retries": 3, "token": None},
        "list": [f"password={MASK}", 1.5],
        "key": "k",
    }


@pytest.mark.parametrize(
    "told",
    [
        "password=", "PassWd -> ", "passphrase: ", "pwd=", "secret=", "token=", "credential=", "jaas.config=",
        "access-key=", "accountKey=", "api_key=", "auth.key=", "encryption-key=", "keystore.key=",
        "masterKey=", "private_key=", "sharedKey=", "signing-key=", "Authorization: ", "signature=",
        "s3://me:", "PlainLoginModule required user me=",
    ],
)  # fmt: skip
def test_what_spark_masks_by_one_pattern(told: str) -> None:
    """Whatever letter it begins with."""
    text = re.sub(TEXT_PATTERN, MASK, f"Project [1 AS id, {told}hid3den@host; rest]")
    assert "hid3den" not in text
    assert text.startswith("Project [1 AS id, ")
    assert "rest]" in text


def test_what_spark_masks_has_quotes_and_signs_in_it() -> None:
    text = "[password='a''s-s3cret', jdbc:postgresql://me:p@ss-s3cret@host/db]"
    assert re.sub(TEXT_PATTERN, MASK, text) == f"[{MASK}, jdbc:postgresql{MASK}host/db]"


def test_threads_register_and_redact_at_once() -> None:
    values = [f"value-{number:04d}-of-many" for number in range(200)]

    def add(value: str) -> str:
        register_secret(value)
        return redact(value)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(add, values)) == {MASK}
    assert not set(redact("\n".join(values)).splitlines()) - {MASK}


FRAGMENTS = st.sampled_from(
    [
        "password",
        "passwd=x",
        "password='",
        "''",
        "authorization: ",
        "scheme ",
        "@",
        'token:\\"',
        "secret",
        "->",
        "://u:",
        "://u:p@",
        "eyJ",
        ".eyJ",
        "-----BEGIN",
        "PRIVATE",
        "KEY-----",
        "-----END",
        "bearer",
        "LoginModule",
        "required",
        "AKIA",
        "hvs.",
        "access.key",
        "Some(",
        "\\",
        '"',
        "'",
        "=",
        ":",
        "a",
        "A",
        ".",
        "-",
        "_",
        "/",
        "%",
        "{",
        "(",
        "\n",
        "é",
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(FRAGMENTS | st.text(string.printable, max_size=5), min_size=1, max_size=6), st.booleans())
@pytest.mark.timeout(120)
def test_long_texts_take_no_longer_than_their_length(fragments: list[str], spaced: bool) -> None:
    """Quadratic time would be minutes at this length: the test's time limit is what fails."""
    unit = (" " if spaced else "").join(fragments) or "x"
    text = unit * (100_000 // len(unit))
    once = redact(text)
    assert redact(once) == once
    secret_shapes(text)


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=4, max_size=40), st.text(max_size=30), st.text(max_size=30))
def test_no_value_survives(value: str, before: str, after: str) -> None:
    known = redaction._Known()
    known.add(value)
    for text in (value, quote(value, safe=""), json.dumps(value)[1:-1], base64.b64encode(value.encode()).decode()):
        if len(value) >= 8 and value.strip():
            assert value not in known.redact(f"{before}{text}{after}")
            assert MASK in known.redact(f"{before}{text}{after}")
