"""Data as all families use it: splits and how they are cut, images, records, the hub, and the data of a run."""
