"""A DSPy module that can be awaited; the only room that imports dspy."""
