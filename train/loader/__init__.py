"""From rows to batches: the stream and its cursor, the collator, the feature cache, and the skipped examples."""
