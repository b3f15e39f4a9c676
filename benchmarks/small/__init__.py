"""Small diffusers pipelines with random weights, one of each family: stand-ins for the hub's."""
