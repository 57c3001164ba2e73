"""What Celery's worker is given: ``celery -A benchmarks.contestants.worker worker``."""

from benchmarks.contestants.queued import create_app

celery_app = create_app().extensions["celery"]
