"""Named problems: what is to be made, what the student is shown, and the teachers learned for it."""
