"""The live view of `watch`."""
