"""Cards for the Hub: of published datasets, of trained models, and of nano."""
