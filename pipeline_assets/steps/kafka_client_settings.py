"""The options of a Kafka connection, which are the Java client's, as librdkafka has them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pipeline_assets.errors import ConfigurationError
from pipeline_assets.steps.kafka_options import kafka_options

if TYPE_CHECKING:
    from pipeline_assets.connections import KafkaConnection
    from pipeline_assets.credentials import Secrets

# Those that both clients know, by the same name and with the same values.
_SAME = (
    "security.protocol",
    "client.id",
    "client.dns.lookup",
    "ssl.key.password",
    "ssl.endpoint.identification.algorithm",
)
# Of librdkafka's, what is not to be shown.
SECRET_SETTINGS = {"sasl.password", "ssl.key.password", "ssl.key.pem", "ssl.keystore.password"}
_LOGIN_MODULES = {"PLAIN": "PlainLoginModule", "SCRAM-SHA-256": "ScramLoginModule", "SCRAM-SHA-512": "ScramLoginModule"}
_JAAS_ENTRY = re.compile(r"""(\w+)\s*=\s*(?:"((?:\\.|[^"\\])*)"|'((?:\\.|[^'\\])*)'|([^\s;"']+))""")


def client_settings(connection: KafkaConnection, secrets: Secrets) -> dict[str, Any]:
    """Return the connection's options, which are the Java client's, as librdkafka has them.

    What only matters to reading records is left out. Raises ConfigurationError, without the value of any secret, for
    what librdkafka has not.
    """
    java = _java_options(connection, secrets)
    settings: dict[str, Any] = {name: java[name] for name in _SAME if name in java}
    if settings.get("ssl.endpoint.identification.algorithm") == "":
        settings["ssl.endpoint.identification.algorithm"] = "none"
    protocol = java.get("security.protocol", "PLAINTEXT").upper()
    if protocol.endswith("SSL"):
        settings |= _truststore(java) | _keystore(java)
    if protocol.startswith("SASL"):
        settings |= _sasl(java)
    return settings


def _java_options(connection: KafkaConnection, secrets: Secrets) -> dict[str, str]:
    """Return the connection's options under the names of Kafka's Java client, with their secrets fetched."""
    return {name.removeprefix("kafka."): value for name, value in kafka_options(connection, secrets).items()}


def _truststore(java: dict[str, str]) -> dict[str, str]:
    kind = java.get("ssl.truststore.type", "JKS").upper()
    if "ssl.truststore.certificates" in java:
        return {"ssl.ca.pem": java["ssl.truststore.certificates"]}
    if "ssl.truststore.location" not in java:
        return {}
    if kind != "PEM":
        raise _untranslatable(f"ssl.truststore.type {kind}", "give the certificates as ssl.truststore.type PEM")
    return {"ssl.ca.location": java["ssl.truststore.location"]}


def _keystore(java: dict[str, str]) -> dict[str, str]:
    kind = java.get("ssl.keystore.type", "JKS").upper()
    if "ssl.keystore.key" in java:
        chain = java.get("ssl.keystore.certificate.chain", "")
        return {"ssl.key.pem": java["ssl.keystore.key"], "ssl.certificate.pem": chain}
    if "ssl.keystore.location" not in java:
        return {}
    location = java["ssl.keystore.location"]
    match kind:
        case "PEM":
            return {"ssl.key.location": location, "ssl.certificate.location": location}
        case "PKCS12":
            return {"ssl.keystore.location": location, "ssl.keystore.password": java.get("ssl.keystore.password", "")}
        case _:
            raise _untranslatable(f"ssl.keystore.type {kind}", "give the key as ssl.keystore.type PEM or PKCS12")


def _sasl(java: dict[str, str]) -> dict[str, str]:
    mechanism = java.get("sasl.mechanism", "GSSAPI").upper()
    module = _LOGIN_MODULES.get(mechanism)
    if module is None:
        raise _untranslatable(f"sasl.mechanism {mechanism}", f"use one of {', '.join(_LOGIN_MODULES)}")
    config = java.get("sasl.jaas.config", "")
    entries = {name: _jaas_value(*values) for name, *values in _JAAS_ENTRY.findall(config)}
    if module not in config.partition("=")[0] or not {"username", "password"} <= entries.keys():
        raise _untranslatable(
            "sasl.jaas.config", f'for {mechanism} it is \'...{module} required username="..." password="...";\''
        )
    return {
        "sasl.mechanisms": mechanism,
        "sasl.username": entries["username"],
        "sasl.password": entries["password"],
    }


def _jaas_value(double: str, single: str, bare: str) -> str:
    return bare or re.sub(r"\\(.)", r"\1", double or single)


def _untranslatable(what: str, instead: str) -> ConfigurationError:
    return ConfigurationError(
        f"the Kafka connection's {what} can't be used to look at offsets without Spark's JVM: {instead}"
    )
