"""What leaves the tool: masks, points, boxes, meshes, videos, in forms that other tools read."""
