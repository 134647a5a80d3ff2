-- substr_1 = 1
UPDATE action_logs
SET claimed_by=CASE WHEN (taken.run_id IS NULL)
THEN action_logs.claimed_by
ELSE 'deployment:' || taken.run_id || CASE WHEN (substr(action_logs.claimed_by, length(action_logs.claimed_by) - 12, 1) = '@')
THEN substr(action_logs.claimed_by, length(action_logs.claimed_by) - 12)
ELSE '' END END, lease_expires_at=(now() + make_interval(secs => taken.lease_seconds)), run_id=coalesce(taken.run_id, action_logs.run_id), updated_at=now()
FROM unnest((SELECT CAST(:taken_id::VARCHAR AS BIGINT[]) AS anon_1), (SELECT CAST(:taken_claim_count::VARCHAR AS BIGINT[]) AS anon_2), (SELECT CAST(:taken_run_id::VARCHAR AS TEXT[]) AS anon_3), (SELECT CAST(:taken_lease_seconds::VARCHAR AS FLOAT[]) AS anon_4)) AS taken(id, claim_count, run_id, lease_seconds)
WHERE action_logs.id = taken.id
AND action_logs.claim_count = taken.claim_count
AND (action_logs.status || '') = 'claimed'
AND (action_logs.run_id IS NULL OR taken.run_id IS NULL OR action_logs.run_id = taken.run_id)
AND (taken.run_id IS NULL OR substr(action_logs.claimed_by, :substr_1::INTEGER, length('deployment:' || taken.run_id || CASE WHEN (substr(action_logs.claimed_by, length(action_logs.claimed_by) - 12, 1) = '@')
THEN substr(action_logs.claimed_by, length(action_logs.claimed_by) - 12)
ELSE '' END)) != ('deployment:' || taken.run_id || CASE WHEN (substr(action_logs.claimed_by, length(action_logs.claimed_by) - 12, 1) = '@')
THEN substr(action_logs.claimed_by, length(action_logs.claimed_by) - 12)
ELSE '' END) OR action_logs.lease_expires_at < now())
RETURNING action_logs.id, action_logs.type, CAST(action_logs.payload AS TEXT) AS payload, action_logs.end_at AS end_at, action_logs.created_at AS created_at, action_logs.claim_count, action_logs.fail_count, action_logs.priority, action_logs.idempotency_key, action_logs.ordering_key, CAST(action_logs.errors AS TEXT) AS errors, action_logs.claimed_by;
