"""From a prompt in one view to evidence in 3D, view after view."""
