"""Streaming pipelines at run time: their queries, their checkpoints, and when they are to run."""
