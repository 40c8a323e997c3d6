"""What all transforms here are: thin, since every stage is a function that works without Beam."""

from typing import Any, Generic, TypeAlias, TypeVar

import apache_beam as beam
from apache_beam.typehints.decorators import IOTypeHints

Taken = TypeVar("Taken")
Given = TypeVar("Given")


# what a transform of several outputs yields: elements of its main one, and TaggedOutputs, whose type says nothing of their value
Tagged: TypeAlias = Any


class Transform(beam.PTransform[Taken, Given], Generic[Taken, Given]):
    """A transform of one or several collections; Beam's own type hints know only one, and would warn."""

    def default_type_hints(self) -> IOTypeHints:
        """Returns none."""
        return IOTypeHints.empty()
