"""What answers are worth: rules, captions, judges, and their summary."""
