"""Who drives a rollout, and which states are trained on when: drivers, curricula, halving."""
