"""Rendering the sections of cards."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Render a section from a template, without empty lines around it."""
    return Environment(loader=FileSystemLoader(TEMPLATES)).get_template(template).render(values).strip()
