"""Policies and experts: the networks a student is made of, and the teachers it learns from."""
