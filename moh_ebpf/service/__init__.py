"""`run`, the service, and the metrics."""
