"""A small synthetic video world, and the small PLLaVA that learns it and ships with the project."""
