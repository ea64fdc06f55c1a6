"""Real PostgreSQL, S3, Kafka, Vault and Spark servers on loopback, without Docker.

``python -m devstack up`` starts them and leaves them running; ``devstack.pytest_plugin`` has fixtures.
"""
