"""Causal language models by transformers."""
