"""DistillBench: somebody's student, judged on frozen terms, and its row for the table of entries."""
