"""Faults under load: a process dies, the database goes down, or a table is locked."""
