"""The one place that knows about threads, task groups and who is running."""
