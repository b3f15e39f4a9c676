"""How good are the student's samples, how far does it stray, and is the difference real: samples, shift, statistics."""
