-- param_1 = 'claimed'
SELECT action_logs.id, sent.claim_count, action_logs.status, action_logs.fail_count, CAST(action_logs.errors AS TEXT) AS errors
FROM action_logs, unnest((SELECT CAST(:sent_id::VARCHAR AS BIGINT[]) AS anon_1), (SELECT CAST(:sent_claim_count::VARCHAR AS BIGINT[]) AS anon_2)) AS sent(id, claim_count)
WHERE action_logs.id = sent.id
AND ((action_logs.status || '') != :param_1::VARCHAR OR action_logs.claim_count != sent.claim_count);
