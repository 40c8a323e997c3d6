"""What Beam works out once with us: options and signatures mean what they mean without."""

import pickle
from collections.abc import Iterator

import apache_beam as beam
import pytest
from apache_beam.coders import BytesCoder
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions, TypeOptions
from apache_beam.transforms import userstate

from patchpack.pipeline.execution import remembered

STATE = userstate.BagStateSpec("kept", BytesCoder())
OTHER = userstate.BagStateSpec("other", BytesCoder())


class Stateful(beam.DoFn):
    """Has a state."""

    def process(self, element: object, kept: object = beam.DoFn.StateParam(STATE)) -> Iterator[object]:
        """Yields what it gets."""
        yield element


class Stateless(beam.DoFn):
    """Has none."""

    def process(self, element: object) -> Iterator[object]:
        """Yields what it gets."""
        yield element


class Owner:
    """Whose methods are mapped."""

    def plain(self, element: object) -> Iterator[object]:
        """Yields what it gets."""
        yield element

    def stateful(self, element: object, kept: object = beam.DoFn.StateParam(OTHER)) -> Iterator[object]:
        """Yields what it gets."""
        yield element


def test_views_are_made_once_and_share_what_is_set() -> None:
    ours, beams = remembered.LocalOptions(["--direct_num_workers=3"]), PipelineOptions(["--direct_num_workers=3"])
    assert ours.view_as(DirectOptions) is ours.view_as(DirectOptions)
    for options in (ours, beams):
        assert options.view_as(DirectOptions).direct_num_workers == 3
        options.view_as(TypeOptions).runtime_type_check = True
        assert options.view_as(TypeOptions).runtime_type_check is True
    assert ours.view_as(StandardOptions).runner == beams.view_as(StandardOptions).runner
    assert ours.get_all_options() == beams.get_all_options()


def test_options_that_travelled_are_the_same() -> None:
    options = remembered.LocalOptions(["--direct_num_workers=3"])
    options.view_as(TypeOptions).runtime_type_check = True
    arrived = pickle.loads(pickle.dumps(options))
    assert vars(arrived).keys() == vars(PipelineOptions([])).keys()
    assert arrived.view_as(DirectOptions).direct_num_workers == 3
    assert arrived.view_as(TypeOptions).runtime_type_check is True


def test_states_are_those_that_beam_finds() -> None:
    owner = Owner()
    dofns = [Stateful(), Stateless(), *(beam.FlatMap(of).dofn for of in (owner.plain, owner.stateful, print))]
    expected = [userstate.get_dofn_specs(dofn) for dofn in dofns]
    assert [len(states) for states, _ in expected] == [1, 0, 0, 1, 0]
    before = userstate.get_dofn_specs
    with remembered.signatures():
        for dofns_in_order in (dofns, dofns[::-1], dofns):
            for dofn in dofns_in_order:
                found = userstate.get_dofn_specs(dofn)
                assert found == expected[dofns.index(dofn)]
                # what one caller does with its sets is no other's
                found[0].clear()
    assert userstate.get_dofn_specs is before


def test_the_wrapping_ends_with_an_error_too() -> None:
    before = userstate.get_dofn_specs
    with pytest.raises(KeyError), remembered.signatures():
        raise KeyError
    assert userstate.get_dofn_specs is before
