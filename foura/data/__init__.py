"""What families share about data: splits, images, records, the hub."""
