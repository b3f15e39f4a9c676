"""How suites run: cells, the processes that run them, their evaluations, and runs made again."""
