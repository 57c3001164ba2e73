"""Two pages: what came of a user's own links, and of all links for the site's operators.

Register :func:`create_blueprint` on the app; the pages and their parts are templates that a host can override.
"""

from .views import create_blueprint

__all__ = ["create_blueprint"]
