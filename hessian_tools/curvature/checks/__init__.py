"""The self-check of an operator, and its independent witness."""
