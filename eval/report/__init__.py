"""Reports for people: tables, plots, and the comparison of two runs."""
