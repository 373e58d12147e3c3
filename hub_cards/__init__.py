"""Cards for the Hub, and uploads: models, adapters, training data, captions, results, Spaces."""
