"""What only type checkers read, and a check that it leaves nothing out."""
