-- status_1 = 'pending'
-- status_2 = 'processed'
UPDATE action_logs
SET end_at=CASE WHEN (settled.delay_seconds IS NULL)
THEN action_logs.end_at
ELSE (now() + make_interval(secs => settled.delay_seconds)) END, status=settled.status, claimed_at=CASE WHEN (settled.status = :status_1::VARCHAR)
THEN CAST(NULL AS TIMESTAMP WITH TIME ZONE)
ELSE action_logs.claimed_at END, claimed_by=CASE WHEN (settled.status = :status_1::VARCHAR)
THEN CAST(NULL AS TEXT)
ELSE action_logs.claimed_by END, lease_expires_at=CAST(NULL AS TIMESTAMP WITH TIME ZONE), run_id=coalesce(settled.run_id, action_logs.run_id), fail_count=settled.fail_count, errors=coalesce(CAST(settled.errors AS JSONB), action_logs.errors), processed_at=CASE WHEN (settled.status = :status_2::VARCHAR)
THEN now()
ELSE CAST(NULL AS TIMESTAMP WITH TIME ZONE) END, settled_at=CASE WHEN (settled.status = :status_1::VARCHAR)
THEN CAST(NULL AS TIMESTAMP WITH TIME ZONE)
ELSE now() END, updated_at=now(), held_until=CASE WHEN (action_logs.ordering_key IS NULL)
THEN action_logs.held_until
ELSE CASE WHEN (settled.delay_seconds IS NULL)
THEN action_logs.end_at
ELSE (now() + make_interval(secs => settled.delay_seconds)) END END
FROM unnest((SELECT CAST(:settled_id::VARCHAR AS BIGINT[]) AS anon_1), (SELECT CAST(:settled_claim_count::VARCHAR AS BIGINT[]) AS anon_2), (SELECT CAST(:settled_status::VARCHAR AS TEXT[]) AS anon_3), (SELECT CAST(:settled_fail_count::VARCHAR AS INTEGER[]) AS anon_4), (SELECT CAST(:settled_delay_seconds::VARCHAR AS FLOAT[]) AS anon_5), (SELECT CAST(:settled_errors::VARCHAR AS TEXT[]) AS anon_6), (SELECT CAST(:settled_run_id::VARCHAR AS TEXT[]) AS anon_7)) AS settled(id, claim_count, status, fail_count, delay_seconds, errors, run_id)
WHERE action_logs.id = settled.id
AND action_logs.claim_count = settled.claim_count
AND (action_logs.status || '') = 'claimed'
RETURNING action_logs.id;
