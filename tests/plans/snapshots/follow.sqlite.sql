-- json_extract_1 = '$[0]'
-- json_extract_2 = '$[1]'
-- json_extract_3 = '$[2]'
-- json_extract_4 = '$[3]'
-- param_1 = -1
-- param_2 = 0
UPDATE action_logs
SET lease_expires_at=strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', followed.lease_seconds)), run_id=coalesce(followed.run_id, action_logs.run_id), updated_at=strftime('%Y-%m-%d %H:%M:%f', 'now')
FROM (SELECT CAST(json_extract(anon_1.value, :json_extract_1) AS BIGINT) AS id, CAST(json_extract(anon_1.value, :json_extract_2) AS BIGINT) AS claim_count, CAST(json_extract(anon_1.value, :json_extract_3) AS TEXT) AS run_id, CAST(json_extract(anon_1.value, :json_extract_4) AS FLOAT) AS lease_seconds
FROM json_each(:followed_rows) AS anon_1
LIMIT :param_1 OFFSET :param_2) AS followed
WHERE action_logs.id = followed.id
AND action_logs.claim_count = followed.claim_count
AND (action_logs.status || '') = 'claimed'
RETURNING id;
