"""Image classification by timm."""
