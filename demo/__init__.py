"""The chat about videos in the browser (Gradio)."""
