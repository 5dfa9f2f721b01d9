"""The contestants on meta-training: hessian-tools, plain torch and three libraries. All compute one meta-gradient.

One run is one meta-gradient: from the episodes of an outer step, which are in memory, to the mean gradient over tasks.
The contestants have the argument ``quantity`` like those on curvature, but do not read it, because all of them compute
the same.
"""
