"""Filters that make keys of the operator's passphrase: on the control machine, in memory alone."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path

from ansible.errors import AnsibleFilterError


def _sealed():
    """Return the code that hosts get as a module_util, which cannot be imported by name here."""
    path = Path(__file__).parents[1] / "module_utils" / "covey_sealed.py"
    spec = importlib.util.spec_from_file_location("covey_sealed", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sealed = _sealed()


def covey_seal_to(passphrase):
    """Return what hosts seal to, with a new salt: {salt, public}, both in Base64.

    Both at once, since Ansible evaluates an expression each time that it is named.
    """
    salt = sealed.new_salt()
    try:
        public = sealed.public_key(str(passphrase), salt)
    except sealed.SealError as error:
        raise AnsibleFilterError(f"covey_backup_passphrase cannot be used: {error}.") from None
    return {
        "salt": base64.b64encode(salt).decode(),
        "public": base64.b64encode(public).decode(),
    }


def covey_file_key(path, passphrase):
    """Return the key in Base64 that opens the backup at `path`."""
    try:
        key = sealed.file_key(Path(path).read_bytes(), str(passphrase))
        return base64.b64encode(key).decode()
    except (sealed.SealError, OSError) as error:
        raise AnsibleFilterError(f"{path} cannot be opened: {error}.") from None


def covey_backup_host(path):
    """Return the host that the backup at `path` is of."""
    try:
        return sealed.header(Path(path).read_bytes())["host"]
    except (sealed.SealError, OSError) as error:
        raise AnsibleFilterError(f"{path} cannot be read: {error}.") from None


class FilterModule:
    """What Ansible looks for."""

    def filters(self):
        """Return the filters by name."""
        return {
            "covey_seal_to": covey_seal_to,
            "covey_file_key": covey_file_key,
            "covey_backup_host": covey_backup_host,
        }
