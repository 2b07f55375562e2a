"""The Segment panel in nerfstudio's viewer, and the state behind it."""
