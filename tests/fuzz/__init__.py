"""Programs that send random input for as long as you like."""
