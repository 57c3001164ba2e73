"""What needs another package than those the extension requires."""
