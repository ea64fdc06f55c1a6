"""NumPy's values as arguments of calls to the JVM, at no cost for a process that has none."""

from __future__ import annotations

import sys
from typing import Any


class _ForNumpyAlone:
    """A converter of PySpark that is not asked before there is a value for it.

    To learn whether NumPy is installed it imports PySpark's test tools, and by these pandas and PyArrow, at the first
    call to the JVM with a list or a dict: 80 MB, and most of a second.
    """

    def __init__(self, converter: Any) -> None:
        self._converter = converter

    def can_convert(self, value: object) -> bool:
        numpy = sys.modules.get("numpy")
        if numpy is None or not isinstance(value, numpy.generic | numpy.ndarray):
            return False
        return bool(self._converter.can_convert(value))

    def convert(self, value: object, gateway_client: Any) -> Any:
        return self._converter.convert(value, gateway_client)


def defer_numpy() -> None:
    """Have PySpark's converters of NumPy values import nothing for other values."""
    from py4j.protocol import INPUT_CONVERTER
    from pyspark.sql.types import NumpyArrayConverter, NumpyScalarConverter

    INPUT_CONVERTER[:] = [
        _ForNumpyAlone(converter) if isinstance(converter, NumpyArrayConverter | NumpyScalarConverter) else converter
        for converter in INPUT_CONVERTER
    ]
