#!/usr/bin/python
"""Ansible module: seal this host's keys and state into one file."""

from __future__ import annotations

import base64
import os
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.covey_archive import ArchiveError, pack
from ansible.module_utils.covey_sealed import seal

DOCUMENTATION = """
module: covey_backup
short_description: Seals a Covey node's keys and state into one file
description:
  - Only the passphrase that O(public) was made of opens the file; nothing is written in clear.
  - Runs with a Python that has C(cryptography), such as that of Covey's release.
options:
  dest: {description: The sealed file., type: path, required: true}
  host: {description: The name that the backup is for., type: str, required: true}
  public: {description: The passphrase's public key in Base64., type: str, required: true}
  salt: {description: The salt that it was made with in Base64., type: str, required: true}
  state: {description: The state directory., type: path, default: /var/lib/covey}
  etc: {description: The folder of settings., type: path, default: /etc/covey}
  gateway:
    description: The gateway's store.
    type: path
    default: /var/lib/covey-gateway/gateway.db
author: Covey
"""
RETURN = """
files: {description: How many files the backup holds., returned: always, type: int}
"""


def main():
    """Read, seal, write."""
    module = AnsibleModule(
        {
            "dest": {"type": "path", "required": True},
            "host": {"type": "str", "required": True},
            "public": {"type": "str", "required": True},
            "salt": {"type": "str", "required": True},
            "state": {"type": "path", "default": "/var/lib/covey"},
            "etc": {"type": "path", "default": "/etc/covey"},
            "gateway": {"type": "path", "default": "/var/lib/covey-gateway/gateway.db"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    try:
        data, files = pack(Path(wanted["state"]), Path(wanted["etc"]), Path(wanted["gateway"]))
    except (ArchiveError, OSError) as error:
        module.fail_json(msg=f"nothing was saved: {error}")
    if not module.check_mode:
        salt, public = base64.b64decode(wanted["salt"]), base64.b64decode(wanted["public"])
        sealed = seal(data, wanted["host"], time.time(), salt, public)
        descriptor = os.open(wanted["dest"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(sealed)
    module.exit_json(changed=True, files=files)


if __name__ == "__main__":
    main()
