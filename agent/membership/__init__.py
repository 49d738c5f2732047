"""Who belongs to the mesh: certificates, tickets, invites and the state directory (design §4).

Cores: certificate, ticket, invites, issuer, join, naming, endpoint, wire. Shell: store.
"""
