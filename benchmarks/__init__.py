"""How fast it is, and how well it judges: each module is a command."""
