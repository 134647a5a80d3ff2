-- coalesce_1 = ''
-- coalesce_2 = ''
SELECT action_logs.id, action_logs.type, coalesce(CAST(action_logs.payload AS TEXT), :coalesce_1) AS payload, action_logs.end_at AS end_at, action_logs.created_at AS created_at, action_logs.claim_count, action_logs.fail_count, action_logs.priority, action_logs.idempotency_key, action_logs.ordering_key, coalesce(CAST(action_logs.errors AS TEXT), :coalesce_2) AS errors, action_logs.claimed_by
FROM action_logs
WHERE action_logs.status = 'claimed'
AND action_logs.claimed_by = :claimed_by
AND action_logs.claimed_at >= :since
AND (action_logs.run_id IS NULL OR action_logs.run_id = action_logs.claimed_by)
ORDER BY action_logs.lease_expires_at, action_logs.id;
