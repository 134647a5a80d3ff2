UPDATE action_logs
SET run_id=begun.run_id, updated_at=now()
FROM unnest((SELECT :begun_id::BIGINT[] AS anon_1), (SELECT :begun_claim_count::BIGINT[] AS anon_2), (SELECT :begun_run_id::TEXT[] AS anon_3)) AS begun(id, claim_count, run_id)
WHERE action_logs.id = begun.id
AND action_logs.claim_count = begun.claim_count
AND (action_logs.status || '') = 'claimed'
RETURNING action_logs.id;
