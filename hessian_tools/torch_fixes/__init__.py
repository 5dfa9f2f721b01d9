"""Replacements for operations that torch differentiates wrongly or not at all, and a switch to full float32 precision.

:mod:`.operations` mends second derivatives and :mod:`.normalisation` third ones; they say what is wrong in torch 2.13.
:mod:`.function_modes` puts their functions in the place of torch's while a loss is evaluated. :mod:`.batchnorm` and
:mod:`.convolutions` compute faster what torch computes correctly. :mod:`.precision` turns TF32 and autocast off.
"""
