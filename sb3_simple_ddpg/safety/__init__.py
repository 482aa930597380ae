"""User mistakes, numbers that are not finite and environments that fail: each becomes an error with its cure."""
