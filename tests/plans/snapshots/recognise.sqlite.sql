-- coalesce_1 = ''
-- json_extract_1 = '$[0]'
-- json_extract_2 = '$[1]'
-- param_1 = -1
-- param_2 = 0
-- param_3 = 'claimed'
SELECT action_logs.id, sent.claim_count, action_logs.status, action_logs.fail_count, coalesce(CAST(action_logs.errors AS TEXT), :coalesce_1) AS errors
FROM action_logs, (SELECT CAST(json_extract(anon_1.value, :json_extract_1) AS BIGINT) AS id, CAST(json_extract(anon_1.value, :json_extract_2) AS BIGINT) AS claim_count
FROM json_each(:sent_rows) AS anon_1
LIMIT :param_1 OFFSET :param_2) AS sent
WHERE action_logs.id = sent.id
AND ((action_logs.status || '') != :param_3 OR action_logs.claim_count != sent.claim_count);
