"""The page's module is looked through for examples where Gradio, an extra, is installed."""

from importlib.util import find_spec


collect_ignore = [] if find_spec("gradio") else ["src/ldae/demo/page.py"]
