"""What is seen of runs: figures, tables, verdicts, and the page that holds them."""
