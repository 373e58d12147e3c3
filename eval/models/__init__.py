"""What answers questions: a local model, or one behind a server."""
