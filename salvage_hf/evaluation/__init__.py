"""Methods compared: scores, cost, tables, figures and the report."""
