-- json_extract_1 = '$[0]'
-- json_extract_2 = '$[1]'
-- json_extract_3 = '$[2]'
-- param_1 = -1
-- param_2 = 0
UPDATE action_logs
SET run_id=begun.run_id, updated_at=strftime('%Y-%m-%d %H:%M:%f', 'now')
FROM (SELECT CAST(json_extract(anon_1.value, :json_extract_1) AS BIGINT) AS id, CAST(json_extract(anon_1.value, :json_extract_2) AS BIGINT) AS claim_count, CAST(json_extract(anon_1.value, :json_extract_3) AS TEXT) AS run_id
FROM json_each(:begun_rows) AS anon_1
LIMIT :param_1 OFFSET :param_2) AS begun
WHERE action_logs.id = begun.id
AND action_logs.claim_count = begun.claim_count
AND (action_logs.status || '') = 'claimed'
RETURNING id;
