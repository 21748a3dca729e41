"""Comparison of attribution methods: scores, cost, tables, figures and the report."""
