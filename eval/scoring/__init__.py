"""Scoring of answers: rules, caption metrics, judges, statistics, and the summary of a run."""
