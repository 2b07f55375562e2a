"""Mask fields: evidence per voxel (NeRFs) or per splat (Gaussians)."""
