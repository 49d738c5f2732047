"""Who belongs to the mesh: certificates, tickets, invites and the state directory (design §4).

Cores: wire, naming, grant, certificate, ticket, invites, issuer, join, revocation, keyring, roll.
Shells: rootkey, directory, store; a Membership in three layers: standing (what a node believes),
certifying (tickets and certificates), issuing (revocations, network keys, the root key).
"""
