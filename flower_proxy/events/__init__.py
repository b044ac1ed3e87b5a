"""From the broker to listeners: the way of Celery's events."""
