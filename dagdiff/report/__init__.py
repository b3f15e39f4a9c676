"""What is seen of runs: figures, tables, sentences, and the page that holds them."""
