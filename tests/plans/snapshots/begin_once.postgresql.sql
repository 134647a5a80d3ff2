UPDATE action_logs
SET lease_expires_at=(now() + make_interval(secs => :lease_seconds)), run_id=entered.run_id, updated_at=now()
FROM unnest((SELECT CAST(:entered_id::VARCHAR AS BIGINT[]) AS anon_1), (SELECT CAST(:entered_claim_count::VARCHAR AS BIGINT[]) AS anon_2), (SELECT CAST(:entered_run_id::VARCHAR AS TEXT[]) AS anon_3)) AS entered(id, claim_count, run_id)
WHERE action_logs.id = entered.id
AND action_logs.claim_count = entered.claim_count
AND (action_logs.status || '') = 'claimed'
AND action_logs.run_id = action_logs.claimed_by
RETURNING action_logs.id, action_logs.type, CAST(action_logs.payload AS TEXT) AS payload, action_logs.end_at AS end_at, action_logs.created_at AS created_at, action_logs.claim_count, action_logs.fail_count, action_logs.priority, action_logs.idempotency_key, action_logs.ordering_key, CAST(action_logs.errors AS TEXT) AS errors, action_logs.claimed_by;
