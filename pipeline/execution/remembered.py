"""What Beam works out again for every transform of a graph, worked out once: half the time of a graph's making.

Beam parses its options anew at every look at them, and reads the signatures of all methods of a DoFn at each of its checks.
"""

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import DoFn, userstate

_View = TypeVar("_View", bound=PipelineOptions)
_Specs = tuple[set[userstate.StateSpec], set[userstate.TimerSpec]]

_VIEWS = "_views"

# of all pipelines of this process
_known: dict[type[DoFn], _Specs] = {}


class LocalOptions(PipelineOptions):
    """Options of a pipeline of this machine, each class of which is parsed once: its views share what is set, as Beam's do."""

    def view_as(self, cls: type[_View]) -> _View:
        """Returns Beam's view, the same each time."""
        # not by attribute: Beam's options take those for options
        views = self.__dict__.setdefault(_VIEWS, {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return cast(_View, views[cls])

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]  # Beam's
        return {name: value for name, value in state.items() if name != _VIEWS}


@contextlib.contextmanager
def signatures() -> Iterator[None]:
    """Remembers, while the block runs, which states and timers a class of DoFns has, which Beam reads off the signatures of its methods."""
    before = userstate.get_dofn_specs
    setattr(userstate, "get_dofn_specs", _by_class(before))  # noqa: B010 (a function, which type checkers guard)
    try:
        yield
    finally:
        userstate.get_dofn_specs = before


def _by_class(ask: Callable[[DoFn], _Specs]) -> Callable[[DoFn], _Specs]:
    def remembered(dofn: DoFn) -> _Specs:
        if isinstance(vars(dofn).get("process"), types.MethodType):
            # a Map of a method, whose signature is its own
            return ask(dofn)
        if type(dofn) not in _known:
            _known[type(dofn)] = ask(dofn)
        states, timers = _known[type(dofn)]
        return set(states), set(timers)

    return remembered
