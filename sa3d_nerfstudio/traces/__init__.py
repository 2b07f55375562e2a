"""Traces: how a frozen radiance field spreads a pixel over the cells of a mask field."""
