-- json_extract_1 = '$[0]'
-- json_extract_2 = '$[1]'
-- param_1 = -1
-- param_2 = 0
UPDATE action_logs
SET lease_expires_at=strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', :lease_seconds)), updated_at=strftime('%Y-%m-%d %H:%M:%f', 'now')
FROM (SELECT CAST(json_extract(anon_1.value, :json_extract_1) AS BIGINT) AS id, CAST(json_extract(anon_1.value, :json_extract_2) AS BIGINT) AS claim_count
FROM json_each(:held_rows) AS anon_1
LIMIT :param_1 OFFSET :param_2) AS held
WHERE action_logs.id = held.id
AND action_logs.claim_count = held.claim_count
AND (action_logs.status || '') = 'claimed'
AND action_logs.lease_expires_at > strftime('%Y-%m-%d %H:%M:%f', 'now')
RETURNING id;
