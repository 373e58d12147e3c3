"""The synthetic world of nano: its scenes, their questions, and clips."""
