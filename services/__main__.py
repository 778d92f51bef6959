"""The console command ``sightline``: errors become one clear line and an exit code, never a traceback for bad input."""

from __future__ import annotations

import os
import sys

from pipeline.errors import BadInputError, DeadlineExceededError, NotReadyError, SettingsError, SightlineError

EXIT_CODES: tuple[tuple[type[SightlineError], int], ...] = (
    (SettingsError, 2),
    (BadInputError, 3),
    (NotReadyError, 4),
    (DeadlineExceededError, 5),
)


def exit_code(error: SightlineError) -> int:
    """2 settings, 3 bad input, 4 not ready (try again), 5 deadline, 1 anything else."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def main() -> None:
    """Run the command line."""
    # Must be set before a numeric library loads. Idle OpenMP threads that spin starve a loaded machine; the products of this program are
    # small, and shared between BLAS threads each took 120 ms instead of 3 where another process used the second core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from services.cli.app import app

    try:
        app()
    except SightlineError as error:
        print(f"sightline: {error}", file=sys.stderr)
        sys.exit(exit_code(error))
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
