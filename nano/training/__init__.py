"""How nano is trained, by the paper's recipe at a small scale."""
