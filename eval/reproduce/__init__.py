"""The paper's tables again: a lock for each cell, the run that reproduces it, what differs, and what it takes."""
