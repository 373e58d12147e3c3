"""The cards of models, adapters and datasets, from configs, training summaries and results."""
