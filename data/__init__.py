"""Training data: row formats, sources, mixtures, inspection, and publishing to the Hub, captions too."""
