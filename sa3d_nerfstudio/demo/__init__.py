"""The demo: a scene of our own making, from images to an exported object, scored against the truth."""
