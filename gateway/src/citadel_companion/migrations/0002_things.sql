-- What the companion keeps for clients: responses, files, batches. The body is the part's own.
CREATE TABLE citadel.things (
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    owner TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ,
    body JSONB NOT NULL,
    PRIMARY KEY (kind, id)
);
CREATE INDEX things_of_owner ON citadel.things (kind, owner, created_at DESC, id DESC);
CREATE INDEX things_by_expiry ON citadel.things (expires_at) WHERE expires_at IS NOT NULL;
