SELECT action_logs.id, action_logs.type, CAST(action_logs.payload AS TEXT) AS payload, action_logs.end_at AS end_at, action_logs.created_at AS created_at, action_logs.claim_count, action_logs.fail_count, action_logs.priority, action_logs.idempotency_key, action_logs.ordering_key, CAST(action_logs.errors AS TEXT) AS errors, action_logs.claimed_by
FROM action_logs
WHERE action_logs.status = 'claimed'
AND action_logs.claimed_by = :claimed_by::VARCHAR
AND action_logs.claimed_at >= :since::TIMESTAMP WITH TIME ZONE
AND (action_logs.run_id IS NULL OR action_logs.run_id = action_logs.claimed_by)
ORDER BY action_logs.lease_expires_at, action_logs.id
FOR UPDATE SKIP LOCKED;
