"""Programs that make up input, for as long as one likes."""
