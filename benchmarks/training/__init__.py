"""Contestants on meta-training: ours, and the same meta-gradient by other libraries.

What is timed is one meta-gradient: all tasks of an outer step, from episodes in memory to the mean gradient.
"""
