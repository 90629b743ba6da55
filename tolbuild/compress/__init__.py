"""From rows to few numbers: a basis for each layer's rows, the rank each layer gets, and codes of 8 bits.

Plain functions of tensors: they know no table, no file and no worker.
"""
