SELECT action_logs.id, action_logs.type, CAST(action_logs.payload AS TEXT) AS payload, action_logs.end_at AS end_at, action_logs.created_at AS created_at, action_logs.claim_count, action_logs.fail_count, action_logs.priority, action_logs.idempotency_key, action_logs.ordering_key, CAST(action_logs.errors AS TEXT) AS errors, action_logs.claimed_by
FROM action_logs, unnest((SELECT CAST(:wanted_id::VARCHAR AS BIGINT[]) AS anon_1), (SELECT CAST(:wanted_claim_count::VARCHAR AS BIGINT[]) AS anon_2)) AS wanted(id, claim_count)
WHERE action_logs.id = wanted.id
AND action_logs.claim_count = wanted.claim_count
AND (action_logs.status || '') = 'claimed';
