"""Losses, metrics and the deterministic evaluation, as LightningModules, and what watches their training."""
