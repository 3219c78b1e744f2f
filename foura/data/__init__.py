"""What a backbone can be adapted to."""
