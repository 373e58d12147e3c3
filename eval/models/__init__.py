"""Models that answer questions, on this machine or behind a server, and chat models that serve as judges."""
