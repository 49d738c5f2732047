#!/usr/bin/python
# Copyright: Covey's authors. AGPL-3.0-or-later.
"""Ansible module: a certificate that signs itself, made on the host, whose key never leaves it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: covey_self_signed
short_description: Make a self-signed certificate
options:
  folder: {description: Where cert.pem and key.pem are., type: path, required: true}
  python: {description: A Python that has cryptography., type: path, required: true}
  names: {description: Host names and addresses., type: list, elements: str, required: true}
  days: {description: How long it counts., type: int, default: 825}
"""

# Told by the certificate that is there: its names, and the days that are left.
LOOK = """
import datetime, json, sys
from cryptography import x509
from cryptography.hazmat.primitives.serialization import *
folder = sys.argv[1]
found = x509.load_pem_x509_certificate(open(folder + "/cert.pem", "rb").read())
key = load_pem_private_key(open(folder + "/key.pem", "rb").read(), None)
both = [one.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for one in (found.public_key(), key.public_key())]
names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
left = found.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
print(json.dumps({"names": [str(one.value) for one in names], "days": left.days,
                  "belong": both[0] == both[1]}))
"""

MAKE = """
import datetime, ipaddress, json, os, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
folder, days, names = sys.argv[1], int(sys.argv[2]), sys.argv[3:]

def general(name):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)

key = ec.generate_private_key(ec.SECP256R1())
now = datetime.datetime.now(datetime.timezone.utc)
who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0][:64])])
cert = (
    x509.CertificateBuilder().subject_name(who).issuer_name(who).public_key(key.public_key())
    .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
    .not_valid_after(now + datetime.timedelta(days=days))
    .add_extension(x509.SubjectAlternativeName([general(name) for name in names]), critical=False)
    .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    .sign(key, hashes.SHA256())
)
for name, raw, mode in (
    ("key.pem", key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                  serialization.NoEncryption()), 0o600),
    ("cert.pem", cert.public_bytes(serialization.Encoding.PEM), 0o644),
):
    partial = folder + "/." + name
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(raw)
    os.rename(partial, folder + "/" + name)
"""

# It is made anew so many days before its end.
RENEW_DAYS = 30


def due(there: dict | None, names: list[str]) -> bool:
    """Say whether a new certificate is needed, by what `LOOK` told of the one that is there."""
    if there is None or not there["belong"]:
        return True
    return sorted(there["names"]) != sorted(names) or there["days"] < RENEW_DAYS


def main() -> None:
    """Make the certificate where one is due."""
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "required": True},
            "python": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "days": {"type": "int", "default": 825},
        },
        supports_check_mode=True,
    )
    folder, python, names = (module.params[name] for name in ("folder", "python", "names"))
    if not Path(python).exists():
        if module.check_mode:
            module.exit_json(changed=True)
        module.fail_json(msg=f"{python} is not there: Covey is not installed on this host.")
    said = subprocess.run([python, "-c", LOOK, folder], capture_output=True, text=True)
    there = json.loads(said.stdout) if said.returncode == 0 else None
    if not due(there, names):
        module.exit_json(changed=False)
    if not module.check_mode:
        made = subprocess.run(
            [python, "-c", MAKE, folder, str(module.params["days"]), *names],
            capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode:
            last = (made.stderr.strip().splitlines() or ["no reason is known"])[-1]
            module.fail_json(
                msg=f"No certificate could be made for {', '.join(names)}: {last}. Check "
                "covey_gateway_tls_names."
            )
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
