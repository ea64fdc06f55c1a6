"""What runs tell of themselves in numbers: recorded as JSON lines, and exposed to Prometheus."""
