"""A Dagster code location that turns JSON pipeline configs into software-defined Spark assets."""
