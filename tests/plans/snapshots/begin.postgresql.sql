UPDATE action_logs
SET run_id=begun.run_id, updated_at=now()
FROM unnest((SELECT CAST(:begun_id::VARCHAR AS BIGINT[]) AS anon_1), (SELECT CAST(:begun_claim_count::VARCHAR AS BIGINT[]) AS anon_2), (SELECT CAST(:begun_run_id::VARCHAR AS TEXT[]) AS anon_3)) AS begun(id, claim_count, run_id)
WHERE action_logs.id = begun.id
AND action_logs.claim_count = begun.claim_count
AND (action_logs.status || '') = 'claimed'
RETURNING action_logs.id;
