"""Who drives a roll-in, and which states are trained on when: drivers, curricula, halving."""
