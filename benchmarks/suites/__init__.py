"""The suites: what each compares."""
