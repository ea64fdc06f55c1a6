"""Scripts in Python processes of their own, which have imported and started nothing yet."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def in_fresh_process(script: str, *arguments: str) -> str:
    """Run `script` and return what it prints; holds that it succeeds and leaves no resource open."""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
