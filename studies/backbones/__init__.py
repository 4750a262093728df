"""Two small backbones and what lies between them, without labels."""
