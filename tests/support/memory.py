"""Peak memory of a process: of its own program, and not of what started it, which is what `getrusage` gives."""

import os
from pathlib import Path


def peak_bytes_of(pid: int) -> int:
    """Returns the peak resident memory of a process so far; 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # an ended process that nobody has waited for has none
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return 1024 * int(found[0]) if found else 0


def own_peak_bytes() -> int:
    """Returns the peak resident memory of this process."""
    return peak_bytes_of(os.getpid())
