"""Thousands of mutated files: no crash, no hang, no other exception, no image where a strict decoder reports an error."""

import os
from pathlib import Path

import pytest
from support.hostile_fuzz import findings, mutant, originals
from support.memory import own_peak_bytes

from patchpack.pipeline.execution.sandbox import Limits, Sandbox
from patchpack.pipeline.media import DecodeError

# of each original; 36 originals
NUM_MUTANTS = 200
BATCH = 50
# a second is a hundred times what one of these takes
LIMITS = Limits(60, 2**31)


def all_findings(sandbox: Sandbox, name: str, original: bytes, seeds: list[int]) -> list[str]:
    """Returns the findings of some mutants; those that end the sandbox are looked for one by one."""
    try:
        return sandbox.call(findings, name, original, seeds)[:-1]
    except DecodeError as error:
        if len(seeds) == 1:
            return [f"{name} seed {seeds[0]}: {error.reason}: {error}"]
        return [line for seed in seeds for line in all_findings(sandbox, name, original, [seed])]


@pytest.mark.slow
@pytest.mark.parametrize("format", sorted({name.split(".")[0] for name in originals()}))
def test_mutants_end_as_rejects_or_as_pictures_that_no_decoder_objects_to(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(Path(__file__).parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    sandbox, found = Sandbox(LIMITS), []
    first = int(os.environ.get("FUZZ_FIRST_SEED", "0"))
    count = int(os.environ.get("FUZZ_NUM_MUTANTS", str(NUM_MUTANTS)))
    for name, original in originals().items():
        if name.split(".")[0] == format:
            for start in range(first, first + count, BATCH):
                seeds = list(range(start, min(start + BATCH, first + count)))
                found += all_findings(sandbox, name, original, seeds)
    peak = sandbox.call(own_peak_bytes)
    sandbox.close()
    assert found == []
    assert peak < 10**9


def test_originals_are_sound_and_mutants_differ_from_them() -> None:
    for name, original in originals().items():
        assert findings(name, original, []) == ["0"]
        mutants = {mutant(original, seed) for seed in range(20)}
        assert len(mutants - {original}) >= 15
        assert mutant(original, 3) == mutant(original, 3)
