"""Folders of evaluation results: reading them, and their figures as text."""
