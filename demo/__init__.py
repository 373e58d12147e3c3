"""
The chat about videos in the browser. `page.build_demo` makes its page, for a loaded model.

Nothing is imported here: processes with limits, which decode, import `display.py` and should not wait for Gradio.
"""
