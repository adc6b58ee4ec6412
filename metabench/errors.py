"""What can go wrong. Every error names the thing, its value and the nearest right one.

>>> from metabench import errors, testing
>>> try:
...     testing.build("method", "bilevle")
... except errors.UnknownName as error:
...     print(error.near)
['bilevel']

:class:`MetabenchError` is the base of all that a user can repair; the command line shows these
without a traceback. A method raises :class:`Diverged`, which is none of them: it ends the run, and
its text stands in the record as the reason.
"""

from metabench.core.errors import (
    DataMissing,
    Distrusted,
    Diverged,
    Held,
    MetabenchError,
    NotApplicable,
    SettingError,
    StoreError,
    SuiteError,
    UnknownName,
)

__all__ = [
    "DataMissing",
    "Distrusted",
    "Diverged",
    "Held",
    "MetabenchError",
    "NotApplicable",
    "SettingError",
    "StoreError",
    "SuiteError",
    "UnknownName",
]
