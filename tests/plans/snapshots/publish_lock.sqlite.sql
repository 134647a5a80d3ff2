-- json_extract_1 = '$[0]'
-- json_extract_2 = '$[1]'
-- param_1 = -1
-- param_2 = 0
SELECT action_logs.id
FROM action_logs
WHERE action_logs.id IN (SELECT (SELECT holder.id
FROM action_logs AS holder
WHERE holder.type = "key".type
AND holder.idempotency_key = "key".idempotency_key
AND holder.idempotency_key IS NOT NULL) AS anon_1
FROM (SELECT CAST(json_extract(anon_2.value, :json_extract_1) AS VARCHAR) AS type, CAST(json_extract(anon_2.value, :json_extract_2) AS VARCHAR) AS idempotency_key
FROM json_each(:key_rows) AS anon_2
LIMIT :param_1 OFFSET :param_2) AS "key")
ORDER BY action_logs.id;
