-- claim_count_1 = 1
-- coalesce_1 = ''
-- coalesce_2 = ''
-- json_extract_1 = '$[0]'
-- json_extract_2 = '$[1]'
-- param_1 = -1
-- param_2 = 0
-- param_3 = 0
-- param_4 = 0
-- status = 'claimed'
UPDATE action_logs
SET status=:status, claimed_at=strftime('%Y-%m-%d %H:%M:%f', 'now'), claimed_by=:claimed_by, claim_count=CASE WHEN (action_logs.claim_count < 9223372036854775807)
THEN action_logs.claim_count + :claim_count_1
ELSE 9223372036854775807 END, lease_expires_at=strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', :lease_seconds)), run_id=:run_id, updated_at=strftime('%Y-%m-%d %H:%M:%f', 'now')
WHERE action_logs.id IN (SELECT due.id
FROM (SELECT merged.id AS id, merged.end_at AS end_at
FROM (SELECT candidate.id AS id, candidate.end_at AS end_at
FROM action_logs AS candidate
WHERE candidate.status = 'pending'
AND candidate.type = :type_0
AND candidate.priority = :priority_0
AND candidate.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now')
AND (candidate.end_at, candidate.id) >= (:from_at_0, :from_id_0)
AND candidate.ordering_key IS NULL
UNION ALL SELECT candidate.id AS id, candidate.end_at AS end_at
FROM action_logs AS candidate, (SELECT CAST(json_extract(anon_1.value, :json_extract_1) AS BIGINT) AS id, CAST(json_extract(anon_1.value, :json_extract_2) AS INTEGER) AS turn
FROM json_each(:head_rows) AS anon_1
LIMIT :param_1 OFFSET :param_2) AS head
WHERE candidate.id = head.id
AND head.turn = 0
AND (candidate.status || '') = 'pending'
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
LIMIT :limit OFFSET :param_3) AS due
LIMIT :limit OFFSET :param_4)
RETURNING id, type, coalesce(CAST(payload AS TEXT), :coalesce_1) AS payload, end_at AS end_at, created_at AS created_at, claim_count, fail_count, priority, idempotency_key, ordering_key, coalesce(CAST(errors AS TEXT), :coalesce_2) AS errors, claimed_by;
