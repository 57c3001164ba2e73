"""Two pages: the statistics of a user's own links, and those of all links for the site's operators.

Register :func:`create_blueprint` on the app; the pages and their parts are templates that a host can override.
"""

from .views import create_blueprint

__all__ = ["create_blueprint"]
