-- What this product keeps, beside whatever else the database has. A table of somebody else's is never taken for ours:
-- citadel.model_schemas says which are.
CREATE TABLE citadel.model_schemas (
    schema_name TEXT PRIMARY KEY,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- The table of one model's requests, partitioned by month, so that what is old goes as a whole.
CREATE FUNCTION citadel.make_model_schema(wanted TEXT) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM citadel.model_schemas WHERE schema_name = wanted) THEN
        RETURN;
    END IF;
    IF to_regclass(format('%I.llm_model_requests', wanted)) IS NOT NULL THEN
        RAISE EXCEPTION 'the table %.llm_model_requests is there already and is not of this product: rename it, or give '
            'the model another schema', wanted;
    END IF;
    EXECUTE format('CREATE SCHEMA IF NOT EXISTS %I', wanted);
    EXECUTE format($table$
        CREATE TABLE %I.llm_model_requests (
            request_id UUID NOT NULL,
            model_name VARCHAR(100) NOT NULL,
            timestamp TIMESTAMPTZ NOT NULL DEFAULT now(),
            user_id VARCHAR(100),
            prompt_tokens INTEGER,
            completion_tokens INTEGER,
            total_tokens INTEGER,
            latency_ms INTEGER,
            status VARCHAR(20),
            error_message TEXT,
            visible_id VARCHAR(128),
            endpoint VARCHAR(50),
            status_code INTEGER,
            first_token_ms INTEGER,
            queue_ms INTEGER,
            cached_tokens INTEGER,
            charged_tokens INTEGER,
            exact BOOLEAN,
            stream BOOLEAN,
            retries INTEGER,
            tier VARCHAR(50),
            replica VARCHAR(100),
            PRIMARY KEY (request_id, timestamp)
        ) PARTITION BY RANGE (timestamp)
    $table$, wanted);
    EXECUTE format('CREATE INDEX ON %I.llm_model_requests (timestamp)', wanted);
    EXECUTE format('CREATE INDEX ON %I.llm_model_requests (user_id, timestamp)', wanted);
    EXECUTE format('CREATE INDEX ON %I.llm_model_requests (visible_id)', wanted);
    INSERT INTO citadel.model_schemas (schema_name) VALUES (wanted);
END $$;

CREATE FUNCTION citadel.make_partition(wanted TEXT, month DATE) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'CREATE TABLE IF NOT EXISTS %I.%I PARTITION OF %I.llm_model_requests FOR VALUES FROM (%L) TO (%L)',
        wanted, 'llm_model_requests_' || to_char(month, 'YYYY_MM'), wanted,
        month::timestamp AT TIME ZONE 'UTC', (month + INTERVAL '1 month') AT TIME ZONE 'UTC'
    );
END $$;

-- The documents' columns, and what the figures are of. One row for each model, period and moment: computing one again
-- replaces it.
DO $$
BEGIN
    IF to_regclass('public.llm_model_performance') IS NOT NULL THEN
        RAISE EXCEPTION 'the table public.llm_model_performance is there already and is not of this product: rename it';
    END IF;
END $$;
CREATE TABLE public.llm_model_performance (
    metric_id UUID PRIMARY KEY,
    model_name VARCHAR(100) NOT NULL,
    timestamp TIMESTAMPTZ NOT NULL DEFAULT now(),
    avg_latency_ms FLOAT,
    requests_per_second FLOAT,
    memory_usage_gb FLOAT,
    cpu_utilization FLOAT,
    error_rate FLOAT,
    period_seconds INTEGER NOT NULL,
    requests BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL
);
CREATE INDEX ON public.llm_model_performance (model_name, period_seconds, timestamp);

CREATE TABLE citadel.feedback (
    user_id VARCHAR(100) NOT NULL,
    visible_id VARCHAR(128) NOT NULL,
    model_name VARCHAR(100) NOT NULL,
    satisfaction_score FLOAT,
    accuracy_feedback FLOAT,
    use_case VARCHAR(100),
    comment TEXT,
    given_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, visible_id)
);
