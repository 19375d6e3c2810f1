"""Files of credentials for tests."""

import hashlib
import json

TENANT, ADMIN = "tenant-token-4b1d", "admin-token-77aa"


def entry(token, tenant="acme", *scopes):
    return {"sha256": hashlib.sha256(token.encode()).hexdigest(), "tenant": tenant, "scopes": list(scopes or ["inference"])}


def write_tokens(path, *entries, certificates=()):
    path.write_text(json.dumps({"tokens": list(entries), "certificates": list(certificates)}))
    return path
