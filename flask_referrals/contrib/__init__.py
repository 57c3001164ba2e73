"""Integrations with other packages and projects. They use the core, which knows none of them."""
