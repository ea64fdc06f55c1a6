"""What this project costs: measured beside bare PySpark and plain Dagster, in whole processes, from outside."""
