"""Reception of Celery's events, remote control of workers, and the persistent state."""
