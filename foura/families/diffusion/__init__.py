"""Text-to-image diffusion models by diffusers."""
