"""Globs over paths, one component after another, so that whole folders are passed over.

The state is how many components of the pattern may have been matched: a nondeterministic automaton, whose `**` stay where
they are.
"""

import fnmatch


def start(parts: tuple[str, ...]) -> frozenset[int]:
    """Returns how far a pattern is matched before the first component of a path."""
    return _with_empty(parts, {0})


def after(parts: tuple[str, ...], matched: frozenset[int], name: str) -> frozenset[int]:
    """Returns how far a pattern may have been matched after one more component of a path."""
    open_parts = [index for index in matched if index < len(parts)]
    return _with_empty(
        parts,
        {index for index in open_parts if parts[index] == "**"}
        | {index + 1 for index in open_parts if parts[index] != "**" and fnmatch.fnmatchcase(name, parts[index])},
    )


def after_path(parts: tuple[str, ...], matched: frozenset[int], path: str) -> frozenset[int]:
    """Returns how far a pattern may have been matched after all components of a path, which may be empty."""
    for name in path.split("/") if path else ():
        matched = after(parts, matched, name)
    return matched


def _with_empty(parts: tuple[str, ...], matched: set[int]) -> frozenset[int]:
    """Returns the places and those behind the `**` that follow them, which may stand for nothing."""
    reached = set(matched)
    for index in matched:
        while index < len(parts) and parts[index] == "**":
            index += 1
            reached.add(index)
    return frozenset(reached)
