"""Everything that is drawn, in one vocabulary.

``style`` is how things look, ``summary`` which means are drawn, ``curves``, ``axes``, ``states`` and ``legend`` are
what figures are made of, ``figures`` are those of a study, and ``labelled`` and ``results`` turn single results of the
library into labelled data and into pictures.
"""
