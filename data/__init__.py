"""Rows of any source become conversations; mixtures, inspection and publishing of data sets."""
