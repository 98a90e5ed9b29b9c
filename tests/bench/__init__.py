"""The benchmark behind ``make bench``: this library and its peers at the same work, against the same server.

Read it in this order: ``objects`` (what there is), ``replay`` (the server), ``tasks`` (what is done), ``clients`` (who
does it, and how it is measured), ``peers`` (their environments), ``runner``, ``report``. See ``docs/benchmark.md``.
"""
