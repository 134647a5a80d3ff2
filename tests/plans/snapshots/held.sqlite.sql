-- coalesce_1 = ''
-- coalesce_2 = ''
-- json_extract_1 = '$[0]'
-- json_extract_2 = '$[1]'
-- param_1 = -1
-- param_2 = 0
SELECT action_logs.id, action_logs.type, coalesce(CAST(action_logs.payload AS TEXT), :coalesce_1) AS payload, action_logs.end_at AS end_at, action_logs.created_at AS created_at, action_logs.claim_count, action_logs.fail_count, action_logs.priority, action_logs.idempotency_key, action_logs.ordering_key, coalesce(CAST(action_logs.errors AS TEXT), :coalesce_2) AS errors, action_logs.claimed_by
FROM action_logs, (SELECT CAST(json_extract(anon_1.value, :json_extract_1) AS BIGINT) AS id, CAST(json_extract(anon_1.value, :json_extract_2) AS BIGINT) AS claim_count
FROM json_each(:wanted_rows) AS anon_1
LIMIT :param_1 OFFSET :param_2) AS wanted
WHERE action_logs.id = wanted.id
AND action_logs.claim_count = wanted.claim_count
AND (action_logs.status || '') = 'claimed';
