"""Operations that torch differentiates wrongly or not at all, written out in others; and full float32 precision.

:mod:`.operations` mends second derivatives and :mod:`.normalisation` third ones; each function there says what is wrong
in torch 2.13. :mod:`.function_modes` replaces torch's operations by them while a loss is evaluated. :mod:`.batchnorm`
shortens derivatives that are right in torch. :mod:`.precision` turns TF32 and autocast off.
"""
