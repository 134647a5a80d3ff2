-- json_extract_1 = '$[0]'
-- json_extract_2 = '$[1]'
-- json_extract_3 = '$[2]'
-- param_1 = -1
-- param_2 = 0
-- status = 'dead'
UPDATE action_logs
SET status=:status, lease_expires_at=CAST(NULL AS TEXT), errors=buried.errors, settled_at=strftime('%Y-%m-%d %H:%M:%f', 'now'), updated_at=strftime('%Y-%m-%d %H:%M:%f', 'now')
FROM (SELECT CAST(json_extract(anon_1.value, :json_extract_1) AS BIGINT) AS id, CAST(json_extract(anon_1.value, :json_extract_2) AS BIGINT) AS claim_count, CAST(json_extract(anon_1.value, :json_extract_3) AS TEXT) AS errors
FROM json_each(:buried_rows) AS anon_1
LIMIT :param_1 OFFSET :param_2) AS buried
WHERE action_logs.id = buried.id
AND action_logs.claim_count = buried.claim_count
AND (action_logs.status || '') IN ('pending', 'claimed')
RETURNING id;
