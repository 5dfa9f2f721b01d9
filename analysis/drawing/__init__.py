"""Draws the figures of a study, and plots of single results of the library.

``style`` has the colours, fonts and sizes. ``summary`` computes the means that figures show. ``curves``,
``references``, ``panels`` and ``legend`` draw the parts of a figure, and ``figures`` has the figures of a study.
``labelled`` turns a single result of the library into a labelled Dataset, and ``results`` draws it. ``series`` splits
such a Dataset into the parts that are drawn in different colours.
"""
