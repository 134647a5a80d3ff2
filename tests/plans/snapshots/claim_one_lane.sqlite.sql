-- claim_count_1 = 1
-- coalesce_1 = ''
-- coalesce_2 = ''
-- param_1 = 0
-- param_2 = 0
-- param_3 = 0
-- status = 'claimed'
UPDATE action_logs
SET status=:status, claimed_at=strftime('%Y-%m-%d %H:%M:%f', 'now'), claimed_by=:claimed_by, claim_count=CASE WHEN (action_logs.claim_count < 9223372036854775807)
THEN action_logs.claim_count + :claim_count_1
ELSE 9223372036854775807 END, lease_expires_at=strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', :lease_seconds)), run_id=:run_id, updated_at=strftime('%Y-%m-%d %H:%M:%f', 'now')
WHERE action_logs.id IN (SELECT due.id
FROM (SELECT merged.id AS id, merged.end_at AS end_at
FROM (SELECT first.id AS id, first.end_at AS end_at
FROM (SELECT candidate.id AS id, candidate.end_at AS end_at, candidate.ordering_key AS ordering_key
FROM action_logs AS candidate
WHERE candidate.status = 'pending'
AND candidate.type = :type_0
AND candidate.priority = :priority_0
AND candidate.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now')
ORDER BY candidate.end_at, candidate.id
LIMIT :limit * 2 + 500 OFFSET :param_1) AS first
WHERE first.ordering_key IS NULL OR NOT (EXISTS (SELECT *
FROM action_logs AS running
WHERE running.ordering_key = first.ordering_key
AND running.status = 'claimed'))
AND NOT (EXISTS (SELECT *
FROM action_logs AS earlier
WHERE earlier.ordering_key = first.ordering_key
AND earlier.id < first.id
AND earlier.status IN ('pending', 'claimed')
AND (earlier.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now') OR earlier.claim_count > 0
AND (earlier.held_until IS NULL OR earlier.held_until = earlier.end_at))))) AS merged
ORDER BY merged.end_at, merged.id
LIMIT :limit OFFSET :param_2) AS due
LIMIT :limit OFFSET :param_3)
RETURNING id, type, coalesce(CAST(payload AS TEXT), :coalesce_1) AS payload, end_at AS end_at, created_at AS created_at, claim_count, fail_count, priority, idempotency_key, ordering_key, coalesce(CAST(errors AS TEXT), :coalesce_2) AS errors, claimed_by;
