-- claim_count_1 = 1
-- status = 'claimed'
UPDATE action_logs
SET status=:status::VARCHAR, claimed_at=now(), claimed_by=:claimed_by::VARCHAR, claim_count=CASE WHEN (action_logs.claim_count < 9223372036854775807)
THEN action_logs.claim_count + :claim_count_1::BIGINT
ELSE 9223372036854775807 END, lease_expires_at=(now() + make_interval(secs => :lease_seconds)), run_id=:run_id::VARCHAR, updated_at=now()
WHERE action_logs.id = :wanted_id::BIGINT
AND (action_logs.status || '') = 'pending'
AND action_logs.end_at <= now()
AND (action_logs.ordering_key IS NULL OR NOT (EXISTS (SELECT *
FROM action_logs AS running
WHERE running.ordering_key = action_logs.ordering_key
AND running.status = 'claimed'))
AND NOT (EXISTS (SELECT *
FROM action_logs AS earlier
WHERE earlier.ordering_key = action_logs.ordering_key
AND earlier.id < action_logs.id
AND earlier.status IN ('pending', 'claimed')
AND (earlier.end_at <= now() OR earlier.claim_count > 0
AND (earlier.held_until IS NULL OR earlier.held_until = earlier.end_at)))))
RETURNING action_logs.id, action_logs.type, CAST(action_logs.payload AS TEXT) AS payload, action_logs.end_at AS end_at, action_logs.created_at AS created_at, action_logs.claim_count, action_logs.fail_count, action_logs.priority, action_logs.idempotency_key, action_logs.ordering_key, CAST(action_logs.errors AS TEXT) AS errors, action_logs.claimed_by;
