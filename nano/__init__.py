"""A small synthetic video world, and the small PLLaVA that is trained on it and ships with the project."""
