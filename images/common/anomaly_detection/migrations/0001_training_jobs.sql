CREATE TABLE training_jobs (
    job_id uuid PRIMARY KEY,
    series_id text NOT NULL,
    -- Fencing number: a result never replaces that of a job with a higher one.
    sequence bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    status text NOT NULL CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'superseded')),
    priority text NOT NULL CHECK (priority IN ('standard', 'high')),
    data_key text NOT NULL,
    data_sha256 text NOT NULL,
    points integer NOT NULL,
    parameters jsonb NOT NULL,
    -- Digest of points and parameters; jsonb alone would hold 1 (one sample) and 1.0 (all samples) to be equal.
    fingerprint text NOT NULL,
    request_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- When the broker confirmed the message; null for a moment, or longer if the API died in between: then it is published again.
    published_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    -- How often a worker took the job; also the fencing number of its owner.
    attempts integer NOT NULL DEFAULT 0,
    model_version integer,
    mlflow_run_id text,
    durations jsonb NOT NULL DEFAULT '{}',
    error_code text,
    error_message text
);

-- Latest job of a series, and a series' jobs page by page.
CREATE INDEX training_jobs_series ON training_jobs (series_id, sequence DESC);
-- Jobs of a state page by page.
CREATE INDEX training_jobs_status ON training_jobs (status, sequence DESC);
-- Jobs whose message is not confirmed: always few.
CREATE INDEX training_jobs_unpublished ON training_jobs (created_at) WHERE status = 'queued' AND published_at IS NULL;

-- What is in production for each series.
CREATE TABLE series_models (
    series_id text PRIMARY KEY,
    sequence bigint NOT NULL,
    model_version integer NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- The accepted fit requests of the current window, for the rate limit that all API replicas share.
CREATE TABLE fit_requests (
    series_id text PRIMARY KEY,
    accepted_at timestamptz[] NOT NULL
);
