"""From rows to batches: the stream, the collator, and what they keep."""
