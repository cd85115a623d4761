"""Skip the doctests of the demo's page where Gradio, an optional dependency, is not installed."""

from importlib.util import find_spec


collect_ignore = [] if find_spec("gradio") else ["src/ldae/demo/page.py"]
