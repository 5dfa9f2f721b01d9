"""Meta-training against its peers: one module for each contestant, whose ``build(problem, quantity)`` makes a Job.

What is timed is one meta-gradient: all tasks of an outer step, from episodes in memory to the mean gradient.
"""
