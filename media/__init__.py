"""The gate for media from strangers: what may be read, and within which limits."""
