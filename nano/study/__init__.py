"""The paper's own questions, asked of models that anyone can train on a laptop: `python -m pllava.nano study`."""
