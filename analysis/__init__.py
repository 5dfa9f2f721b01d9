"""The study: what to measure along inner loops, what it means, how it is shown."""
