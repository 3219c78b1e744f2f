"""The frozen models that are adapted."""
