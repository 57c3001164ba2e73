"""What Celery's worker is given: ``celery -A tests.faults.worker_app worker``."""

from tests.faults.site import create_app

celery_app = create_app().extensions["celery"]
