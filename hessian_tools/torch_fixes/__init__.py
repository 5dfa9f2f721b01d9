"""Operations that torch differentiates wrongly or not at all, written out in others; and full float32 precision.

:mod:`.operations` mends second derivatives and :mod:`.normalisation` third ones; each operation there says what is
wrong with it in torch 2.13. :mod:`.function_modes` puts them in the place of torch's while a loss is evaluated.
:mod:`.batchnorm` is right in torch already, and shorter here. :mod:`.precision` turns TF32 and autocast off.
"""
