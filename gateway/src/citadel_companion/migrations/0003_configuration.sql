-- The settings of each host, a row for each change. No value: it is not set any more, or was not before.
CREATE TABLE citadel.configuration (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    host TEXT NOT NULL,
    version TEXT NOT NULL,
    changed_by TEXT NOT NULL,
    changed_from TEXT NOT NULL,
    changed_at TIMESTAMPTZ NOT NULL,
    name TEXT NOT NULL,
    value JSONB,
    previous JSONB
);
CREATE INDEX configuration_of_host ON citadel.configuration (host, name, number DESC);
