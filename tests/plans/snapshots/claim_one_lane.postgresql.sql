-- claim_count_1 = 1
-- status = 'claimed'
UPDATE action_logs
SET status=:status::VARCHAR, claimed_at=now(), claimed_by=:claimed_by::VARCHAR, claim_count=CASE WHEN (action_logs.claim_count < 9223372036854775807)
THEN action_logs.claim_count + :claim_count_1::BIGINT
ELSE 9223372036854775807 END, lease_expires_at=(now() + make_interval(secs => :lease_seconds)), run_id=:run_id::VARCHAR, updated_at=now()
WHERE action_logs.id = ANY (array((SELECT locked.id
FROM (SELECT lane.id AS id, lane.end_at AS end_at
FROM (SELECT first.id AS id, first.end_at AS end_at
FROM (SELECT candidate.id AS id, candidate.end_at AS end_at, candidate.ordering_key AS ordering_key
FROM action_logs AS candidate
WHERE candidate.status = 'pending'
AND candidate.type = :type_0::VARCHAR
AND candidate.priority = :priority_0::SMALLINT
AND candidate.end_at <= now()
ORDER BY candidate.end_at, candidate.id
LIMIT (SELECT :limit::INTEGER * 2 + 500 AS anon_1)) AS first
WHERE first.ordering_key IS NULL OR NOT (EXISTS (SELECT *
FROM action_logs AS running
WHERE running.ordering_key = first.ordering_key
AND running.status = 'claimed'))
AND NOT (EXISTS (SELECT *
FROM action_logs AS earlier
WHERE earlier.ordering_key = first.ordering_key
AND earlier.id < first.id
AND earlier.status IN ('pending', 'claimed')
AND (earlier.end_at <= now() OR earlier.claim_count > 0
AND (earlier.held_until IS NULL OR earlier.held_until = earlier.end_at))))) AS lane
ORDER BY lane.end_at, lane.id
LIMIT (SELECT CAST(NULL AS INTEGER) AS anon_2)) AS due
JOIN LATERAL (SELECT row.id AS id
FROM action_logs AS row
WHERE row.id = due.id
AND (row.status || '') = 'pending'
AND row.end_at <= now()
FOR UPDATE SKIP LOCKED) AS locked ON true
LIMIT (SELECT :limit::INTEGER AS anon_3))))
RETURNING action_logs.id, action_logs.type, CAST(action_logs.payload AS TEXT) AS payload, action_logs.end_at AS end_at, action_logs.created_at AS created_at, action_logs.claim_count, action_logs.fail_count, action_logs.priority, action_logs.idempotency_key, action_logs.ordering_key, CAST(action_logs.errors AS TEXT) AS errors, action_logs.claimed_by;
