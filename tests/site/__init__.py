"""What visitors, users and staff of a site do, on each database."""
