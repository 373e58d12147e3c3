"""Results of evaluations: their folders, their numbers as text, their section in a card, and their publication."""
