"""The vectorstore: collections of points and passages, sealed at rest, searched in memory."""

import os

# One thread per product: with more, BLAS threads fight the event loop and tails reach 165 ms. numpy
# reads this once, when it is imported, so it stands here, before any module that imports numpy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # noqa: TID251
