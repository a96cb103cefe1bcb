"""Spans and metrics; the only room that imports opentelemetry."""
