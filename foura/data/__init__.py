"""What families share about data: splits and how they are cut, images, records, the hub, and the data of a run."""
