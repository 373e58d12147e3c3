"""
The chat about videos in the browser (Gradio): `build_demo` makes the page for a loaded model, and `launch_options` are
for its `launch`.
"""

from ..extras import needs_extra

with needs_extra("demo"):
    from .page import ABOUT_NANO, build_demo, launch_options

__all__ = ["ABOUT_NANO", "build_demo", "launch_options"]
