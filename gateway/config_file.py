"""Read the gateway's configuration file. Used by the command line, and again on SIGHUP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.config import Config, load
from gateway.errors import EnvironmentFault


def read(file: Path | None, flags: Mapping[str, Any]) -> Config:
    """Return what `file` (None: no file) and the flags say; raises EnvironmentFault, UsageFault."""
    if file is None:
        return load("", "", flags)
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFault(
            f"the configuration file {file} cannot be read: {getattr(error, 'strerror', error)}",
            hint="Check --config and COVEY_GATEWAY_CONFIG.",
        ) from error
    return load(text, str(file), flags)
