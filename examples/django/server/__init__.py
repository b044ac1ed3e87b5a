from server.celery import app

__all__ = ["app"]
