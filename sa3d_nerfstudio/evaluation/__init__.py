"""How good a segmentation is: figures, and the protocols under which they are published."""
