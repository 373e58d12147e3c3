"""Checkpoints and the Hub: conversion into one directory that `from_pretrained` loads."""

from .conversion import convert

__all__ = ["convert"]
