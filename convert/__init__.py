"""Conversion of every PLLaVA and LLaVA checkpoint layout into a directory that `from_pretrained` loads."""

from .writing import convert

__all__ = ["convert"]
