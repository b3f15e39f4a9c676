"""Benchmarks: named datasets to distil in, and suites that compare what a student was trained on."""
