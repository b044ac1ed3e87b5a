"""Flower, Celery's monitor, right at any URL and behind any reverse proxy."""

__version__ = "0.1.0"
