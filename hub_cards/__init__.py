"""Cards for the Hub, and uploads: models, adapters, training data, captions, results, Spaces."""

from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"
