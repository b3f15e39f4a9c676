"""A run: its settings and parts, the recipe of what is trained, the experiment, and the folder that keeps it."""
