"""What `customer_360` does, as a bare PySpark script: the measure of what this project adds.

``python bare_customer_360.py CONF TABLE``: a JSON file with Spark's conf, and where the Delta table goes. It finds
PostgreSQL by the PG* variables, and says last when it reached which point.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main(conf_file: str, table: str) -> None:
    """Read customers and orders, join them, and write the result as a Delta table."""
    reached = {"interpreter": time.time()}
    from pyspark.sql import SparkSession
    from pyspark.storagelevel import StorageLevel

    reached["PySpark imported"] = time.time()
    builder = SparkSession.builder
    for key, value in json.loads(Path(conf_file).read_text(encoding="utf-8")).items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    reached["Spark started"] = time.time()
    customers = (
        spark.read.format("jdbc")
        .options(
            url=f"jdbc:postgresql://{os.environ['PGHOST']}:{os.environ['PGPORT']}/{os.environ['PGDATABASE']}",
            driver="org.postgresql.Driver",
            user=os.environ["PGUSER"],
            password=os.environ["PGPASSWORD"],
            dbtable="public.customers",
            fetchsize="10000",
        )
        .load()
        .persist(StorageLevel(True, True, False, True, 1))  # Spark's MEMORY_AND_DISK
    )
    orders = spark.read.parquet("s3a://data/orders/*.parquet")
    joined = customers.join(orders, customers["id"] == orders["customer_id"], "inner")
    reached["planned"] = time.time()
    joined.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(table)
    reached["table written"] = time.time()
    spark.stop()
    reached["Spark stopped"] = time.time()
    print(json.dumps(reached))


if __name__ == "__main__":
    main(*sys.argv[1:])
