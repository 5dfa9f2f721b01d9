"""Draws the figures of a study, and plots of single results of the library.

``style`` has the colours, fonts and sizes. ``selection`` chooses the learners that a figure shows, and ``summary``
computes the means. ``curves``, ``references``, ``panels`` and ``legend`` draw the parts of a figure. ``figures`` has
the figures of a study, ``forest`` draws the verdicts on its claims, and ``overlay`` draws several studies over each
other. ``labelled`` turns a single result of the library into a labelled Dataset, and ``results`` draws it. ``series``
splits such a Dataset into the parts that are drawn in different colours.
"""
