"""Integrations that need optional packages."""
