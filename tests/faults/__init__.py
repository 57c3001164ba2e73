"""What becomes of clicks when a process dies, the database goes down, or somebody holds its lock."""
