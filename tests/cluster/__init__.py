"""A MariaDB Galera cluster of three nodes, HAProxy before it, and a site that writes to all of them at once."""
