"""2D segmenters: embed an image once, predict masks for many prompts."""
