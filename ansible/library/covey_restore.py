#!/usr/bin/python
"""Ansible module: lay a sealed backup's files on an empty host."""

from __future__ import annotations

import base64
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.covey_archive import ArchiveError, lay, unpack
from ansible.module_utils.covey_sealed import SealError, open_sealed

DOCUMENTATION = """
module: covey_restore
short_description: Lays the keys and state of a Covey node's backup on an empty host
description:
  - Refuses where a node's key lies already. Tickets that were not used are void afterwards.
  - Runs with a Python that has C(cryptography), such as that of Covey's release.
options:
  src: {description: The sealed file on this host., type: path, required: true}
  key: {description: The key of this one file in Base64., type: str, required: true}
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
    """Open, check, write."""
    module = AnsibleModule(
        {
            "src": {"type": "path", "required": True},
            "key": {"type": "str", "required": True, "no_log": True},
            "state": {"type": "path", "default": "/var/lib/covey"},
            "etc": {"type": "path", "default": "/etc/covey"},
            "gateway": {"type": "path", "default": "/var/lib/covey-gateway/gateway.db"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    try:
        sealed = Path(wanted["src"]).read_bytes()
        found = unpack(open_sealed(sealed, base64.b64decode(wanted["key"])))
        if not module.check_mode:
            places = (Path(wanted[name]) for name in ("state", "etc", "gateway"))
            lay(found, *places)
    except (SealError, ArchiveError, OSError) as error:
        module.fail_json(msg=f"the backup was not restored: {error}")
    module.exit_json(changed=True, files=len(found))


if __name__ == "__main__":
    main()
