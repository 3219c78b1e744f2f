"""The families of backbones."""
