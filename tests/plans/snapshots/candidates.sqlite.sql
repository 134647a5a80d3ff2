-- coalesce_1 = ''
-- coalesce_2 = ''
-- param_1 = 0
-- param_2 = 0
SELECT action_logs.id, action_logs.type, coalesce(CAST(action_logs.payload AS TEXT), :coalesce_1) AS payload, action_logs.end_at AS end_at, action_logs.created_at AS created_at, action_logs.claim_count, action_logs.fail_count, action_logs.priority, action_logs.idempotency_key, action_logs.ordering_key, coalesce(CAST(action_logs.errors AS TEXT), :coalesce_2) AS errors, action_logs.claimed_by
FROM action_logs
WHERE action_logs.id IN (SELECT due.id
FROM (SELECT merged.id AS id, merged.end_at AS end_at
FROM (SELECT candidate.id AS id, candidate.end_at AS end_at
FROM action_logs AS candidate
WHERE candidate.status = 'pending'
AND candidate.type = :type_0
AND candidate.priority = :priority_0
AND candidate.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now')
AND (candidate.ordering_key IS NULL OR NOT (EXISTS (SELECT *
FROM action_logs AS running
WHERE running.ordering_key = candidate.ordering_key
AND running.status = 'claimed'))
AND NOT (EXISTS (SELECT *
FROM action_logs AS earlier
WHERE earlier.ordering_key = candidate.ordering_key
AND earlier.id < candidate.id
AND earlier.status IN ('pending', 'claimed')
AND (earlier.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now') OR earlier.claim_count > 0
AND (earlier.held_until IS NULL OR earlier.held_until = earlier.end_at)))))) AS merged
ORDER BY merged.end_at, merged.id
LIMIT :limit OFFSET :param_1) AS due
LIMIT :limit OFFSET :param_2)
ORDER BY action_logs.priority DESC, action_logs.end_at, action_logs.id;
