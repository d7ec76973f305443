-- A series without a model keeps its row: the number of the deletion goes on keeping older jobs away.
ALTER TABLE series_models ALTER COLUMN model_version DROP NOT NULL;
-- The event of the last promotion, rollback or deletion until the broker has it; null when nothing waits.
ALTER TABLE series_models ADD COLUMN pending_event jsonb;
CREATE INDEX series_models_pending ON series_models (updated_at) WHERE pending_event IS NOT NULL;

-- When the version a job made was deleted by a request: the same points then are another job again.
ALTER TABLE training_jobs ADD COLUMN model_deleted_at timestamptz;

-- Which job a client's Idempotency-Key stands for, and the digest of what came with it.
CREATE TABLE idempotency_keys (
    series_id text NOT NULL,
    key text NOT NULL,
    fingerprint text NOT NULL,
    job_id uuid NOT NULL REFERENCES training_jobs (job_id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (series_id, key)
);
