"""The small models that ship with the package: their shapes, data, pretraining and weights; and data to adapt them to."""
