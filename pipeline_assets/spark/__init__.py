"""Spark: sessions, caching, what a DataFrame looks like and comes from, what errors mean."""
