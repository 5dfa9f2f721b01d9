"""Inner loops, learners, SHOT and the outer objective: pure functions of a loss, without data or files."""
