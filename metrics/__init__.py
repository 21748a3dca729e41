"""The `evaluate` metrics: one folder each, with exactly what the metric's Space holds."""
