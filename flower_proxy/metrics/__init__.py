"""Prometheus metrics from Celery's events and the broker."""
