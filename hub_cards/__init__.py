"""Cards: of adapters, data sets and nano."""
