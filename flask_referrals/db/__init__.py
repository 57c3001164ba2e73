"""Where the extension meets SQL. These modules know SQLAlchemy and nothing of Flask: what they work on is handed in."""
