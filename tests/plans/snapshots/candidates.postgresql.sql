SELECT action_logs.id, action_logs.type, CAST(action_logs.payload AS TEXT) AS payload, action_logs.end_at AS end_at, action_logs.created_at AS created_at, action_logs.claim_count, action_logs.fail_count, action_logs.priority, action_logs.idempotency_key, action_logs.ordering_key, CAST(action_logs.errors AS TEXT) AS errors, action_logs.claimed_by
FROM action_logs
WHERE action_logs.id = ANY (array((SELECT due.id
FROM (SELECT lane.id AS id, lane.end_at AS end_at
FROM (SELECT candidate.id AS id, candidate.end_at AS end_at
FROM action_logs AS candidate
WHERE candidate.status = 'pending'
AND candidate.type = :type_0::VARCHAR
AND candidate.priority = :priority_0::SMALLINT
AND candidate.end_at <= now()
AND (candidate.ordering_key IS NULL OR NOT (EXISTS (SELECT *
FROM action_logs AS running
WHERE running.ordering_key = candidate.ordering_key
AND running.status = 'claimed'))
AND NOT (EXISTS (SELECT *
FROM action_logs AS earlier
WHERE earlier.ordering_key = candidate.ordering_key
AND earlier.id < candidate.id
AND earlier.status IN ('pending', 'claimed')
AND (earlier.end_at <= now() OR earlier.claim_count > 0
AND (earlier.held_until IS NULL OR earlier.held_until = earlier.end_at)))))) AS lane
ORDER BY lane.end_at, lane.id
LIMIT (SELECT CAST(NULL AS INTEGER) AS anon_1)) AS due
LIMIT (SELECT :limit::INTEGER AS anon_2))))
ORDER BY action_logs.priority DESC, action_logs.end_at, action_logs.id;
