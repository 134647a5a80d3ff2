-- coalesce_1 = ''
-- coalesce_2 = ''
-- json_extract_1 = '$[0]'
-- json_extract_2 = '$[1]'
-- json_extract_3 = '$[2]'
-- json_extract_4 = '$[3]'
-- param_1 = -1
-- param_2 = 0
UPDATE action_logs
SET claimed_by=CASE WHEN (taken.run_id IS NULL)
THEN action_logs.claimed_by
ELSE 'deployment:' || taken.run_id || CASE WHEN (substr(action_logs.claimed_by, length(action_logs.claimed_by) - 12, 1) = '@')
THEN substr(action_logs.claimed_by, length(action_logs.claimed_by) - 12)
ELSE '' END END, lease_expires_at=strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', taken.lease_seconds)), run_id=coalesce(taken.run_id, action_logs.run_id), updated_at=strftime('%Y-%m-%d %H:%M:%f', 'now')
FROM (SELECT CAST(json_extract(anon_1.value, :json_extract_1) AS BIGINT) AS id, CAST(json_extract(anon_1.value, :json_extract_2) AS BIGINT) AS claim_count, CAST(json_extract(anon_1.value, :json_extract_3) AS TEXT) AS run_id, CAST(json_extract(anon_1.value, :json_extract_4) AS FLOAT) AS lease_seconds
FROM json_each(:taken_rows) AS anon_1
LIMIT :param_1 OFFSET :param_2) AS taken
WHERE action_logs.id = taken.id
AND action_logs.claim_count = taken.claim_count
AND (action_logs.status || '') = 'claimed'
AND (action_logs.run_id IS NULL OR taken.run_id IS NULL OR action_logs.run_id = taken.run_id)
RETURNING id, type, coalesce(CAST(payload AS TEXT), :coalesce_1) AS payload, end_at AS end_at, created_at AS created_at, claim_count, fail_count, priority, idempotency_key, ordering_key, coalesce(CAST(errors AS TEXT), :coalesce_2) AS errors, claimed_by;
