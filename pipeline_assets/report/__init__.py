"""The report of a run: one page, made from what Dagster's event log has of it."""
