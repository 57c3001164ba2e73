"""Reads a request, and writes the visitor key into its response. These modules know Flask and nothing of SQLAlchemy."""
