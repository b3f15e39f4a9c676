"""Environments and data: the reverse diffusion chain as a world to act in, and the laws its clean points come from."""
