"""Rendering the sections of cards."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

TEMPLATES = Path(__file__).parent / "templates"
METHOD_FIGURE = Path(__file__).with_name("method.png")  # cards show the file of this name beside them


def render(template: str, **values: Any) -> str:
    """Render a section from a template, without empty lines around it."""
    return Environment(loader=FileSystemLoader(TEMPLATES)).get_template(template).render(values).strip()
