-- json_extract_1 = '$[0]'
-- json_extract_2 = '$[1]'
-- json_extract_3 = '$[2]'
-- json_extract_4 = '$[3]'
-- json_extract_5 = '$[4]'
-- json_extract_6 = '$[5]'
-- json_extract_7 = '$[6]'
-- json_extract_8 = '$[7]'
-- param_1 = -1
-- param_2 = 0
INSERT INTO action_logs (type, payload, end_at, priority, idempotency_key, ordering_key) SELECT draft.type AS type, draft.payload AS payload, coalesce(draft.end_at, strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', draft.delay_seconds))) AS end_at, draft.priority AS priority, draft.idempotency_key AS idempotency_key, draft.ordering_key AS ordering_key
FROM (SELECT CAST(json_extract(anon_1.value, :json_extract_1) AS INTEGER) AS position, CAST(json_extract(anon_1.value, :json_extract_2) AS VARCHAR) AS type, CAST(json_extract(anon_1.value, :json_extract_3) AS TEXT) AS payload, CAST(json_extract(anon_1.value, :json_extract_4) AS TEXT) AS end_at, CAST(json_extract(anon_1.value, :json_extract_5) AS FLOAT) AS delay_seconds, CAST(json_extract(anon_1.value, :json_extract_6) AS SMALLINT) AS priority, CAST(json_extract(anon_1.value, :json_extract_7) AS VARCHAR) AS idempotency_key, CAST(json_extract(anon_1.value, :json_extract_8) AS VARCHAR) AS ordering_key
FROM json_each(:draft_rows) AS anon_1
LIMIT :param_1 OFFSET :param_2) AS draft
WHERE 1 = 1
ORDER BY draft.position
RETURNING id;
