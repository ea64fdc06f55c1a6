from __future__ import annotations

import pytest

from pipeline_assets.spark.masking import mask_secrets


@pytest.mark.parametrize(
    "text",
    [
        "jdbc:postgresql://h:5432/db?user=me&password={}&ssl=true",
        "postgresql://me:{}@h/db",
        "fs.s3a.bucket.data.secret.key={}",
        "fs.s3a.bucket.data.access.key -> {}, other -> 1",
        'sasl.jaas.config=org.apache.Module required username="me" password="{}";',
        "{{'sessionToken': '{}', 'region': 'x'}}",
        "aws_secret_access_key: {}",
        "X-Vault-Token: {}",
    ],
)
def test_secrets_are_masked(text: str) -> None:
    masked = mask_secrets(text.format("s3cr3t+y=="))
    assert "s3cr3t" not in masked
    assert masked.replace("*********", "") == text.format("")


@pytest.mark.parametrize(
    "text",
    [
        "Filter (token_count#3 > 1)",
        "there is no column 'password' (columns: id, password, token)",
        "IAMInstanceCredentialsProvider : software.amazon.awssdk.SdkClientException: no",
        "https://host:8200/v1/secret/data/x",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert mask_secrets(text) == text
