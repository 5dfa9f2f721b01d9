"""Inner loops, learners, the SHOT penalty and the outer objective, as pure functions of a loss; no file is read."""
