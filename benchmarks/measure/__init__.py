"""What machines do, apart from any suite: memory, and how far another CPU may differ."""
