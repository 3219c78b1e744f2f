"""Textbook twins: the same mathematics written step by step, slow and obvious, to hold the fast paths against."""
